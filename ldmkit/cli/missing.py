"""What to install where a command needs a package that the base install leaves out."""

from importlib.util import find_spec

from ldmkit.errors import LdmkitError

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
