"""The Hugging Face hub, out of reach."""

import socket
from pathlib import Path

import huggingface_hub
import pytest


@pytest.fixture
def asked() -> list[object]:
    """The hosts that were looked for, one entry an attempt."""
    return []


@pytest.fixture
def cache(asked: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no network."""

    def refuse(host: object, *arguments: object, **options: object) -> None:
        asked.append(host)
        raise socket.gaierror("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    return tmp_path
