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


def require(*packages: str) -> None:
    """Raises LdmkitError where one of these is not installed: at once, and not when a stage first imports it."""
    missing = [package for package in dict.fromkeys(packages) if find_spec(package) is None]
    if missing:
        raise LdmkitError(_install(", ".join(missing)))


def explain(error: ModuleNotFoundError) -> str | None:
    """The message for a missing optional package, None where the module is none of ours."""
    package = (error.name or "").partition(".")[0]
    return _install(package) if package in TRAIN_PACKAGES else None


def _install(packages: str) -> str:
    return f"this command needs {packages}, which only training and export use: pip install 'ldmkit[train]'"
