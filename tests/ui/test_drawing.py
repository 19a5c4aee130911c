"""Drawing in a thread of its own: what it tells, and when it stops."""

import threading
from pathlib import Path
from typing import Any

import pytest

from ldmkit.runtime.bundle import Bundle
from ldmkit.ui.asked import Asked
from ldmkit.ui.drawing import TOGETHER, draw
from ldmkit.ui.line import Line


def asked(count: int) -> Asked:
    return Asked("", "", 7, steps=3, guidance_scale=1.0, sampler="ddim", width=64, height=64, count=count)


def test_it_ends_after_the_step_in_work_once_it_is_stopped(
    bundles: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, line, stop = bundles["toy-cats"], Line(), threading.Event()

    def stopped(x0: Any) -> list[Any]:
        stop.set()
        return []

    monkeypatch.setattr(bundle, "preview", stopped)  # the first step asks for it
    told = list(draw(bundle, asked(1), folder=tmp_path, stop=stop, line=line, on_turn=lambda: None))
    assert [(each.done, each.total, each.pictures) for each in told] == [(1, 3, [])]
    assert list(tmp_path.iterdir()) == []
    assert len(line) == 0


def test_whoever_leaves_stops_it(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    stop = threading.Event()
    told = draw(bundles["toy-cats"], asked(16), folder=tmp_path, stop=stop, line=Line(), on_turn=lambda: None)
    next(told)
    told.close()
    assert stop.is_set()


def test_pictures_come_by_batches_in_the_order_of_their_seeds(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    turns: list[int] = []
    bundle, line = bundles["toy-cats"], Line()
    told = list(
        draw(
            bundle,
            asked(TOGETHER + 1),
            folder=tmp_path,
            stop=threading.Event(),
            line=line,
            on_turn=lambda: turns.append(len(line)),
        )
    )
    assert turns == [1], "once, in its turn"
    names = [[path.name for path in each.pictures] for each in told if each.pictures]
    assert names == [[f"unconditional-{seed}.png" for seed in range(7, 11)], ["unconditional-11.png"]]
    assert [each.done for each in told] == sorted(each.done for each in told)
    assert (told[-1].done, told[-1].total) == (6, 6)
