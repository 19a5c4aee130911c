"""The pictures and captions of a run: fetched or drawn where they are not there, looked at once, remembered."""

import shutil
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np

from ldmkit.data.buckets import buckets_of
from ldmkit.data.captions import caption_content_hash, caption_files_hash
from ldmkit.data.checked import read_excluded, scan_data
from ldmkit.data.fetch import fetch
from ldmkit.data.index_cache import INDEX, index_file
from ldmkit.data.pictures import PictureIndex, remembered
from ldmkit.data.remote import address, fetched
from ldmkit.data.sources import is_there
from ldmkit.errors import LdmkitError
from ldmkit.recipe import Recipe
from ldmkit.recipe.data import Data
from ldmkit.report import Reporter, megabytes
from ldmkit.run.files import read_record


class Dataset:
    """The pictures of `[data]`, as they are seen from a run's folder."""

    def __init__(self, data: Data, run_dir: Path, reporter: Reporter) -> None:
        self.data = data
        self.folder = Path(data.path)
        self.run_dir = run_dir
        self.reporter = reporter
        self.remembers = False
        """whether pictures that are no longer there are taken as they were last seen: to look at a run, or export it"""
        self.closely = False
        """whether files are hashed whose size and time say that they did not change"""

    @property
    def known(self) -> bool:
        """Whether the pictures can be looked at without fetching them."""
        return is_there(self.folder) or (self.remembers and index_file(self.run_dir) is not None)

    @cached_property
    def index(self) -> PictureIndex:
        """The pictures, fetched or drawn where the folder is not there, decoded once and remembered."""
        data, folder = self.data, self.folder
        cache = self.run_dir / INDEX if self.run_dir.is_dir() else None  # a dry run leaves no folder behind
        there, remote = is_there(folder), address(folder)
        if self.remembers and not there and cache is not None:
            index = remembered(
                cache,
                folder,
                max_pictures=data.num_pictures,
                looks=data.group_duplicates,
                excluded=read_excluded(data.exclude),
            )
            if index is not None:
                return index
        if remote and not there:
            self.reporter.line(f"data: getting {remote}")
            with self.reporter.counter("getting files") as progress:
                fetched(remote, progress)
        elif data.source != "folder" and (not there or folder.is_dir()):  # which says where a folder holds too few
            if not there:
                self.reporter.line(f"data: {folder} is not there; getting it from {data.source}")
            with self.reporter.counter("getting pictures") as progress:
                fetch(data.source, folder, num_pictures=data.num_pictures, size=max(data.shapes[0]), progress=progress)
        with self.reporter.counter("reading pictures") as progress:
            index = scan_data(data, index_cache=cache, progress=progress, closely=self.closely)
        if data.num_pictures and len(index) < data.num_pictures:
            self.reporter.line(
                f"data: data.num_pictures = {data.num_pictures}, and {folder} has {len(index)} that can be used: "
                "all of them are"
            )
        return index

    @cached_property
    def caption_files(self) -> str:
        """Of names, sizes and times; where these differ from the record's and the contents do not, the record's."""
        record = {}
        with suppress(LdmkitError):
            record = read_record(self.run_dir / "captions") or {}
        recorded = record.get("inputs", {}).get("caption_files")
        source = self.index.source
        if source is None:  # the pictures are only remembered
            return str(recorded or "")
        found = caption_files_hash(source)
        if (then := record.get("caption_content")) and (found != recorded or self.closely):
            now = caption_content_hash(source)
            return str(recorded) if now == then else found if found != recorded else now
        return found


def require_room(recipe: Recipe, index: PictureIndex, run_dir: Path) -> None:
    """Raises LdmkitError where the disk cannot hold the latents of an autoencoder that is to be trained."""
    vae, pixels = recipe.vae, np.prod(recipe.data.shapes, axis=1)[buckets_of(index, recipe.data)].sum()
    places = int(pixels) // (vae.patch_size * 2 ** (len(vae.channels) - 1)) ** 2
    copies, width = (2 if recipe.data.flip else 1), (2 if recipe.latents.dtype == "float16" else 4)
    needed = 2 * width * copies * vae.latent_channels * places  # mean and std
    if (free := shutil.disk_usage(run_dir).free) < needed:
        raise LdmkitError(
            f"{run_dir}: the latents of {len(index)} pictures need {megabytes(needed)} and {megabytes(free)} are free; "
            "make room and run the same command again"
        )
