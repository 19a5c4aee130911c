"""Published models: from a local folder, else the Hugging Face cache, else the hub, in bounded time."""

import logging
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
    weights: bool = False,
    **options: Any,
) -> Any:
    """`from_pretrained`, a class method of transformers, on the folder or repository `model`, `OWNER/NAME[@REVISION]`.

    `owner` ("captioner 'florence2'") and `key` ("caption.model") name who asks, `needs` says what a local folder must
    hold, `otherwise` a way out besides. `weights`: it is a network's; its tensors are read from safetensors alone, and
    none may be missing. Further `options` are handed on.
    Raises LdmkitError where the model can be had from nowhere, or not whole.
    """
    from huggingface_hub.errors import HfHubHTTPError

    model, revision = _parted(model, revision, owner, key)
    name = model if revision is None else f"{model} at revision {revision}"
    logger = logging.getLogger("transformers")
    level = logger.level
    if weights:
        options |= {"use_safetensors": True, "output_loading_info": True}
        # It would list each tensor that is missing or not needed: of a published CLIP's other half, hundreds.
        logger.setLevel(logging.ERROR)
    try:
        loaded = _load(from_pretrained, model, revision, options)
    except ImportError:  # of a package that the model needs
        raise
    except HfHubHTTPError as error:  # the hub answered: no such repository or revision, or a login is needed
        raise LdmkitError(
            f"{owner}: the Hugging Face hub refuses {name}: {_first_line(error)}; correct {key} or "
            f"its revision, log in (`hf auth login`), or set {key} to {needs}"
        ) from error
    except Exception as error:  # a stranger's files, and the HTTP library, fail in more ways than can be listed
        if Path(model).is_dir():
            raise LdmkitError(f"{owner}: can't read {key} = {model!r}: {_first_line(error)}; give {needs}") from error
        raise LdmkitError(
            f"{owner}: {name} is neither a folder nor in the Hugging Face cache, and the hub gives no answer: "
            f"{_first_line(error)}; connect once, copy a cache here and set HF_HOME to it, or set {key} to {needs}"
            + (f"; {otherwise}" if otherwise else "")
        ) from error
    finally:
        logger.setLevel(level)
    if not weights:
        return loaded
    network, report = loaded
    if missing := report["missing_keys"]:  # transformers would leave them at random
        raise LdmkitError(
            f"{owner}: the weights of {name} lack {len(missing)} of the network's tensors, first {min(missing)!r}; "
            f"set {key} to {needs}"
        )
    return network


def hub_commit(model: str, revision: str | None = None) -> str | None:
    """The commit that `load_pretrained` takes this model from, as the hub's cache has it; None for a folder."""
    from huggingface_hub import try_to_load_from_cache

    if Path(model).is_dir():
        return None
    model, _, pinned = model.partition("@")
    file = try_to_load_from_cache(model, "config.json", revision=pinned or revision)
    return snapshot_commit(Path(file)) if isinstance(file, str) else None


def commit_of(component: object) -> dict[str, str]:
    """What a part's record keeps of a component with a published model: its attribute `commit`, where it has one."""
    commit = getattr(component, "commit", None)
    return {"commit": commit} if isinstance(commit, str) else {}


def snapshot_commit(file: Path) -> str | None:
    """Of a file in the hub's cache, where the folder of a commit's files has that commit's name."""
    return next((folder.name for folder in file.parents if folder.parent.name == "snapshots"), None)


def _parted(model: str, revision: str | None, owner: str, key: str) -> tuple[str, str | None]:
    """The repository and the revision; a folder's name may have an @."""
    name, _, pinned = model.partition("@")
    if not pinned or Path(model).is_dir():
        return model, revision
    if revision is not None:
        raise LdmkitError(f"{owner}: {key} = {model!r} names a revision, and so does the key `revision`; leave one out")
    return name, pinned


def _load(from_pretrained: Callable[..., Any], model: str, revision: str | None, options: dict[str, Any]) -> Any:
    from huggingface_hub import HfApi

    if Path(model).is_dir():
        return from_pretrained(model, local_files_only=True, **options)
    try:
        return from_pretrained(model, revision=revision, local_files_only=True, **options)
    except OSError:  # not in the cache
        HfApi().model_info(model, revision=revision, timeout=HUB_TIMEOUT)
        return from_pretrained(model, revision=revision, **options)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
