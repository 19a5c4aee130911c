"""What `ldmkit status --deep` looks at beside the parts of a run."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ldmkit.errors import LdmkitError

if TYPE_CHECKING:
    from ldmkit.pipeline import Pipeline


def other_damages(pipeline: "Pipeline") -> Iterator[str]:
    """What is no longer as it was written of the run's own files, and of its pictures; these are hashed.

    To be asked for before the parts' states: then the pictures are remembered as they are now.
    """
    from ldmkit.data.index_cache import INDEX
    from ldmkit.data.pictures import remembered
    from ldmkit.run.files import sha256_of
    from ldmkit.run.first_weights import kept_starts, ways_on
    from ldmkit.run.folder import recipe_of_run
    from ldmkit.runtime.manifest import read_manifest

    run, cache = pipeline.run_dir, pipeline.run_dir / INDEX
    if not run.is_dir():
        return
    then = remembered(cache, Path(pipeline.recipe.data.path))
    if then is None:
        yield f"{cache} is gone or damaged; the pictures are read again"
    elif then.folder.exists():
        seen = {entry.key: entry for entry in then.entries}
        for now in pipeline.index.entries:
            old = seen.get(now.key)
            if old and old.sha256 != now.sha256 and (old.size, old.mtime_ns) == (now.size, now.mtime_ns):
                yield f"{then.folder / now.key} was replaced by a file of the same size and time"

    def starts() -> None:
        for start in kept_starts(run).values():
            if not Path(start.file).is_file() or sha256_of(Path(start.file)) != start.sha256:
                raise LdmkitError(f"{start.file}: damaged or gone; {ways_on(Path(start.file).parent)}")

    looks: list[Callable[[], object]] = [lambda: recipe_of_run(run), starts]
    if (pipeline.bundle_dir / "manifest.json").exists():
        looks.append(lambda: read_manifest(pipeline.bundle_dir))
    for look in looks:
        try:
            look()
        except LdmkitError as error:
            yield str(error)
