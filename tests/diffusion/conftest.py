"""What the tests of schedules and weights share."""

import numpy as np
import pytest
import torch


@pytest.fixture
def diffusers_in_double(monkeypatch):
    """diffusers builds its tables in float32; under this fixture its own code builds them in float64."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(np, "float32", np.float64)
