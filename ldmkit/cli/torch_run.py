"""Opens a finished run for `ldmkit generate --backend torch`."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldmkit.export.torch_backend import TorchBackend


def open_run(run: Path) -> "TorchBackend":
    """`run` is a run's folder, or its name in `runs`. Raises LdmkitError where it is none, or is not finished."""
    from ldmkit.cli.export import run_and_recipe
    from ldmkit.cli.missing import require
    from ldmkit.components.registry import Registry

    folder, recipe = run_and_recipe(run)
    require("torch")
    from ldmkit.export.torch_backend import TorchBackend

    return TorchBackend(recipe, Registry.load([Path(plugin) for plugin in recipe.plugins]), folder)
