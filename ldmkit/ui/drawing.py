"""Draws in a thread of its own and hands over previews and pictures as they come; stops when told to."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from ldmkit.runtime import generate
from ldmkit.runtime.bundle import Bundle
from ldmkit.runtime.generate import Step
from ldmkit.runtime.pictures import metadata_of, slug, write_picture
from ldmkit.runtime.request import DrawRequest
from ldmkit.runtime.settings import DrawSettings, resolve
from ldmkit.ui.queue import DrawQueue, Stopped

BATCH_SIZE = 4
"""pictures of one batch: the first four are shown while the next four are drawn"""
PREVIEW_EVERY = 0.15
"""seconds; a step may take far less, and a browser would fall behind"""


@dataclass(frozen=True)
class Progress:
    """Where a drawing stands. `pictures` are finished since the last one, in the order of their seeds."""

    done: int
    total: int
    """network calls, over all batches"""
    previews: list[Image.Image] = field(default_factory=list)
    """of the pictures in work; empty where the bundle has no map for them"""
    pictures: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    ahead: int = 0
    """drawings that come first, while it waits for its turn"""


def draw(
    bundle: Bundle,
    request: DrawRequest,
    *,
    folder: Path,
    stop: threading.Event,
    turns: DrawQueue,
    on_turn: Callable[[], None],
) -> Iterator[Progress]:
    """Draws what was asked for into PNG files in `folder`; ends early, after the step in work, once `stop` is set.

    Whoever leaves this iterator before its end stops the drawing as well. It waits in `turns` for its own, and calls
    `on_turn` when that has come. Raises LdmkitError where the bundle refuses the settings, or too many wait.
    """
    settings = resolve(bundle, request)
    news: queue.SimpleQueue[Progress | BaseException | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            with turns.turn(stop, lambda ahead: news.put(Progress(0, 0, ahead=ahead))):
                on_turn()
                _draw_batches(bundle, settings, folder, stop, news.put)
            news.put(None)
        except Stopped:
            news.put(None)
        except BaseException as error:  # raised again where the iterator is read
            news.put(error)

    threading.Thread(target=work, name="ldmkit draws", daemon=True).start()
    try:
        while (item := news.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()


def _draw_batches(
    bundle: Bundle, settings: DrawSettings, folder: Path, stop: threading.Event, tell: Callable[[Progress], None]
) -> None:
    """Raises Stopped soon after `stop` is set."""
    pictures = settings.pictures
    batches = [pictures[k : k + BATCH_SIZE] for k in range(0, len(pictures), BATCH_SIZE)]
    done = total = 0
    for index, batch in enumerate(batches):
        told = 0.0

        def on_step(step: Step, index: int = index) -> None:
            nonlocal done, total, told
            if stop.is_set():
                raise Stopped
            # Later batches may be smaller, never slower: each takes as many calls.
            done, total = index * step.total + step.done, len(batches) * step.total
            if time.monotonic() - told >= PREVIEW_EVERY:
                tell(Progress(done, total, previews=bundle.preview(step.x0)))
                told = time.monotonic()

        if stop.is_set():
            raise Stopped
        with generate.collected_warnings() as said:  # in its turn alone
            images = generate.draw(bundle, replace(settings, pictures=batch), batch_size=BATCH_SIZE, on_step=on_step)
            metadata = metadata_of(bundle, settings)
        paths = [
            write_picture(
                image,
                folder / f"{slug(each.prompt)}-{each.seed}.png",
                {"prompt": each.prompt, **metadata, "seed": str(each.seed)},
            )
            for image, each in zip(images, batch, strict=True)
        ]
        tell(Progress(done, total, pictures=paths, warnings=said if index == 0 else []))
