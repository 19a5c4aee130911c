"""What every table of a recipe is. Imports neither torch nor any plugin."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

# Marks keys that change what is printed or how fast, never the result: they are left out of fingerprints.
NO_RESULT: JsonDict = {"affects_result": False}

PositiveInt = Annotated[int, Field(gt=0)]
Channels = Annotated[tuple[PositiveInt, ...], Field(min_length=2)]


class Section(BaseModel):
    """A frozen table whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def fingerprint_keys(self) -> dict[str, Any]:
        """The keys that affect the result, as JSON values."""
        dropped = {
            name
            for name, field in type(self).model_fields.items()
            if isinstance(field.json_schema_extra, dict) and not field.json_schema_extra.get("affects_result", True)
        }
        return self.model_dump(mode="json", exclude=dropped)


class Component(Section):
    """A plugin's component by name; every key that is not declared here is one of its options."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    use: str = Field(description="name of the component; `ldmkit plugins` lists them")

    def table(self) -> dict[str, Any]:
        """`use` and the component's own options, as the registry takes them."""
        return {"use": self.use, **(self.model_extra or {})}
