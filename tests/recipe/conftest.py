"""What the tests of recipes share."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ldmkit.components.registry import Registry
from ldmkit.recipe.template import json_schema


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry.load()


@pytest.fixture(scope="session")
def validator(registry: Registry) -> Any:
    """A stranger's reader of the JSON Schema that we print."""
    schema = json_schema(registry)
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture(scope="session")
def full_recipe() -> Path:
    """A shipped recipe that names a component of every kind."""
    return Path(__file__).parents[2] / "recipes" / "cats-seed.toml"
