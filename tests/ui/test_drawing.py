"""Drawing in a thread of its own: what it tells, and when it stops."""

import threading
from pathlib import Path
from typing import Any

import pytest

from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.request import DrawRequest, each_prompt
from ldmkit.ui.drawing import BATCH_SIZE, draw
from ldmkit.ui.queue import DrawQueue


def request_for(count: int) -> DrawRequest:
    return DrawRequest(each_prompt("", n=count, seed=7), steps=3, guidance_scale=1.0, sampler="ddim", size=(64, 64))


def test_it_ends_after_the_step_in_work_once_it_is_stopped(
    bundles: dict[str, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, turns, stop = bundles["toy-cats"], DrawQueue(), threading.Event()

    def stopped(x0: Any) -> list[Any]:
        stop.set()
        return []

    monkeypatch.setattr(bundle, "preview", stopped)  # the first step asks for it
    told = list(draw(bundle, request_for(1), folder=tmp_path, stop=stop, turns=turns, on_turn=lambda: None))
    assert [(each.done, each.total, each.pictures) for each in told] == [(1, 3, [])]
    assert list(tmp_path.iterdir()) == []
    assert len(turns) == 0


def test_whoever_leaves_stops_it(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    stop = threading.Event()
    told = draw(
        bundles["toy-cats"], request_for(16), folder=tmp_path, stop=stop, turns=DrawQueue(), on_turn=lambda: None
    )
    next(told)
    told.close()
    assert stop.is_set()


def test_pictures_come_by_batches_in_the_order_of_their_seeds(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    seen: list[int] = []
    bundle, turns = bundles["toy-cats"], DrawQueue()
    told = list(
        draw(
            bundle,
            request_for(BATCH_SIZE + 1),
            folder=tmp_path,
            stop=threading.Event(),
            turns=turns,
            on_turn=lambda: seen.append(len(turns)),
        )
    )
    assert seen == [1], "once, in its turn"
    names = [[path.name for path in each.pictures] for each in told if each.pictures]
    assert names == [[f"unconditional-{seed}.png" for seed in range(7, 11)], ["unconditional-11.png"]]
    assert [each.done for each in told] == sorted(each.done for each in told)
    assert (told[-1].done, told[-1].total) == (6, 6)
