"""What several commands share: options, and what to install where a package is missing."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, get_args

import click

from ldmkit.errors import LdmkitError
from ldmkit.runtime.providers import Provider


def _checkpoint(_command: click.Context, _option: click.Parameter, given: str | None) -> str | None:
    if given is not None and given != "best" and not given.isdecimal():
        raise click.BadParameter(f"{given}: it takes a step, as 5000, or best")
    return given if given in (None, "best") else str(int(given))


set_option = click.option("--set", "overrides", multiple=True, metavar="A.B=C", help="Override a key of the recipe.")

checkpoint_option = click.option(
    "--checkpoint",
    callback=_checkpoint,
    metavar="STEP|best",
    help="Take the U-Nets of this step, or the best by the held-out loss, where they have such a checkpoint.",
)


def provider_option(help_text: str) -> Callable[[Any], Any]:
    """`--provider`, what onnxruntime computes on."""
    return click.option(
        "--provider", type=click.Choice(get_args(Provider)), default="auto", show_default=True, help=help_text
    )


TRAIN_PACKAGES = {
    "torch",
    "torchvision",
    "transformers",
    "accelerate",
    "lpips",
    "psutil",
    "onnx",
    "onnxscript",
    "torchmetrics",
    "tensorboard",
    "matplotlib",
    "huggingface_hub",
    "diffusers",
}
TRAINING = ("torch", "accelerate", "torchmetrics", "tensorboard", "matplotlib")
EXPORT = ("torch", "onnx", "onnxscript")
UI = ("gradio",)

_USES = {"train": "only training and export use", "ui": "only the page uses"}
"""extra -> what its packages are for"""


def require(*packages: str, extra: str = "train") -> None:
    """Raises LdmkitError where one of these is not installed: at once, and not when a stage first imports it."""
    missing = [package for package in dict.fromkeys(packages) if find_spec(package) is None]
    if missing:
        raise LdmkitError(_install(", ".join(missing), extra))


def explain(error: ModuleNotFoundError) -> str | None:
    """The message for a missing optional package, None where the module is none of ours."""
    package = (error.name or "").partition(".")[0]
    return _install(package, "train") if package in TRAIN_PACKAGES else None


def _install(packages: str, extra: str) -> str:
    return f"this command needs {packages}, which {_USES[extra]}: pip install 'ldmkit[{extra}]'"
