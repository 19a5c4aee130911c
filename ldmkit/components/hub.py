"""Published models: from a local folder, else the Hugging Face cache, else the hub, in bounded time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldmkit.errors import LdmkitError

HUB_TIMEOUT = 10.0
"""seconds for the hub's first answer; without it a dead network costs minutes of retries"""


def load_pretrained(
    from_pretrained: Callable[..., Any],
    model: str,
    *,
    revision: str | None,
    owner: str,
    key: str,
    needs: str,
    otherwise: str = "",
    **options: Any,
) -> Any:
    """`from_pretrained`, a class method of transformers, on the folder or repository `model`.

    `options` are handed on. `owner` ("captioner 'florence2'") and `key` ("caption.model") name who asks, `needs` what
    a local folder must hold, `otherwise` a way out besides. Raises LdmkitError where the model can be had from nowhere.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    name = model_name(model, revision)
    folder = Path(model)
    if folder.is_dir():
        try:
            return from_pretrained(str(folder), local_files_only=True, **options)
        except ImportError:  # of a package that the model needs
            raise
        except Exception as error:  # a stranger's files fail in more ways than can be listed
            raise LdmkitError(f"{owner}: can't read {key} = {model!r}: {_first_line(error)}; give {needs}") from error
    try:
        try:
            return from_pretrained(model, revision=revision, local_files_only=True, **options)
        except OSError:  # not in the cache
            HfApi().model_info(model, revision=revision, timeout=HUB_TIMEOUT)
            return from_pretrained(model, revision=revision, **options)
    except HfHubHTTPError as error:  # the hub answered: no such repository or revision, or a login is needed
        raise LdmkitError(
            f"{owner}: the Hugging Face hub refuses {name}: {_first_line(error)}; correct {key} or "
            f"{key.rpartition('.')[0]}.revision, log in (`hf auth login`), or set {key} to {needs}"
        ) from error
    except ImportError:
        raise
    except Exception as error:  # as above, and the errors of whatever HTTP library the hub's client uses
        raise LdmkitError(
            f"{owner}: {name} is neither a folder nor in the Hugging Face cache, and the hub gives no answer: "
            f"{_first_line(error)}; connect once, copy a cache here and set HF_HOME to it, or set {key} to {needs}"
            + (f"; {otherwise}" if otherwise else "")
        ) from error


def model_name(model: str, revision: str | None) -> str:
    """How messages call the model."""
    return model if revision is None else f"{model} at revision {revision}"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
