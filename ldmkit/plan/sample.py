"""The few pictures on which `ldmkit plan` runs the stages."""

from dataclasses import dataclass

import numpy as np

from ldmkit.data.pictures import PictureIndex
from ldmkit.run.workspace import Workspace

MAX_SAMPLE = 256
"""pictures that are encoded, of 64x64 pixels; fewer where they are larger"""
MIN_SAMPLE = 16


@dataclass(frozen=True)
class Sample(Workspace):
    """A few pictures that stand for all: the split has its real length, the sample's positions come again and again."""

    train: np.ndarray
    held_out: np.ndarray

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        return self.train, self.held_out


def sample_of(workspace: Workspace) -> Sample:
    """A workspace whose index holds a sample of the pictures, a quarter of them held out."""
    size = min(MAX_SAMPLE, max(MIN_SAMPLE, 2**20 // workspace.recipe.data.size**2))
    train, held_out = workspace.split()
    own_train, own_held_out = _spread(train, size - size // 4), _spread(held_out, size // 4)
    chosen = np.sort(np.concatenate([own_train, own_held_out]))
    index = PictureIndex(workspace.index.folder, tuple(workspace.index.entries[i] for i in chosen), ())
    return Sample(
        workspace.recipe,
        workspace.registry,
        index,
        workspace.run_dir,
        workspace.parts,
        workspace.reporter,
        train=np.resize(np.searchsorted(chosen, own_train), len(train)),
        held_out=np.resize(np.searchsorted(chosen, own_held_out), len(held_out)),
    )


def _spread(positions: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the positions, evenly spread."""
    places = np.linspace(0, len(positions) - 1, min(count, len(positions))).round().astype(np.int64)
    chosen: np.ndarray = positions[places]
    return chosen
