"""Meets every artefact under the watch."""

import re
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from ldmkit.errors import LdmkitError
from tests.corpus.artefact import Artefact, canary
from tests.corpus.audit import Watch

_watch: list[Watch] = []


def watch() -> Watch:
    """The process's only watch: what was added to the interpreter stays."""
    if not _watch:
        tempfile.gettempdir()  # tries out folders, once a process
        _watch.append(Watch())
        sys.addaudithook(_watch[0])
    _watch[0].executed.clear()
    _watch[0].outside.clear()
    _watch[0].seen = 0
    return _watch[0]


def all_artefacts() -> Iterator[Artefact]:
    from tests.corpus.archives import archives
    from tests.corpus.bundles import bundles
    from tests.corpus.captions import captions
    from tests.corpus.checkpoints import checkpoints, pickles, safetensors
    from tests.corpus.recipes import recipes

    for group in (archives, pickles, safetensors, checkpoints, recipes, captions, bundles):
        yield from group()


def meet(artefact: Artefact, folder: Path, watched: Watch) -> list[str]:
    """What went wrong, a line each: another end than the right one, code that ran, a file outside that was touched."""
    folder.mkdir(parents=True)
    use = artefact.make(folder)
    faults = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with watched.over(folder):
                use()
        except LdmkitError as error:
            message = str(error)
            if artefact.refused is None:
                faults.append(f"refused: {message}")
            elif re.search(artefact.refused, message) is None:
                faults.append(f"said {message!r}, not {artefact.refused!r}")
        except BaseException as error:
            faults.append(f"crashed: {type(error).__name__}: {error}")
        else:
            if artefact.refused is not None:
                faults.append(f"was taken; it should be refused with {artefact.refused!r}")
    faults += [f"executed {event}" for event in watched.executed] + [f"touched {path}" for path in watched.outside]
    if canary(folder).exists():
        faults.append("the canary is there: its code ran")
        canary(folder).unlink()
    watched.executed.clear()
    watched.outside.clear()
    return [f"{artefact.name}: {fault}" for fault in faults]


def meet_all(artefacts: Iterable[Artefact], folder: Path) -> tuple[int, list[str]]:
    """(number of artefacts, faults)."""
    watched = watch()
    faults, count = [], 0
    for artefact in artefacts:
        faults += meet(artefact, folder / f"{count:03d}", watched)
        count += 1
    assert watched.seen > count, "the watch sees nothing"
    return count, faults
