"""What every stage works with: the recipe, the plugins, the pictures and the folders of the run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ldmkit.components.registry import Registry
from ldmkit.data.buckets import buckets_of
from ldmkit.data.pictures import PictureIndex
from ldmkit.recipe import Recipe
from ldmkit.report import Reporter
from ldmkit.run.folder import Part


@dataclass(frozen=True)
class Workspace:
    """A stage reads the parts before it and fills its own."""

    recipe: Recipe
    registry: Registry
    index: PictureIndex
    run_dir: Path
    parts: Mapping[str, Part]
    reporter: Reporter
    checkpoint: str | None = field(default=None, kw_only=True)
    """whose weights are exported, see `load_networks`"""

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions in the index of the training pictures and of those held out."""
        data = self.recipe.data
        train, held_out = self.index.split(data.held_out, self.recipe.seed, together=data.group_duplicates)
        return np.array(train, dtype=np.int64), np.array(held_out, dtype=np.int64)

    def buckets(self) -> np.ndarray:
        """(N,) which of `data.shapes` each picture of the index is brought to."""
        return buckets_of(self.index, self.recipe.data)

    def folder(self, name: str) -> Path:
        """Folder of the part `name`."""
        return self.parts[name].folder
