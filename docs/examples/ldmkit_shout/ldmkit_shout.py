"""A captioner that shouts what the file's name says."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from ldmkit import hookimpl


@hookimpl
def register_captioners():
    return {"shout": Shout}


@dataclass(frozen=True, kw_only=True)
class Shout:
    """The words of the file's name, in capitals."""

    ending: Annotated[str, Field(description="written after the words")] = "!"

    def caption(self, pictures):
        return [picture.path.stem.replace("_", " ").upper() + self.ending for picture in pictures]
