"""Opens a finished run for `ldmkit generate --backend torch`."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldmkit.stages.torch_backend import TorchBackend


def open_run(run: Path, runs: Path = Path("runs")) -> "TorchBackend":
    """`run` is a run's folder, or its name in `runs`. Raises LdmkitError where it is none, or is not finished."""
    from ldmkit.cli.missing import require
    from ldmkit.errors import LdmkitError
    from ldmkit.pipeline import recipe_of_run
    from ldmkit.plugins import Registry

    require("torch")
    folder = run if run.is_dir() or not (runs / run).is_dir() else runs / run
    recipe = recipe_of_run(folder)
    for plugin in recipe.plugins:
        if Path(plugin).resolve().is_relative_to(folder.resolve()):
            raise LdmkitError(
                f"{folder / 'recipe.json'}: plugins: {plugin} lies in the run itself, and code that comes along with a "
                "run is not run: move the file elsewhere and correct the path"
            )
    from ldmkit.stages.torch_backend import TorchBackend

    return TorchBackend(recipe, Registry.load([Path(plugin) for plugin in recipe.plugins]), folder)
