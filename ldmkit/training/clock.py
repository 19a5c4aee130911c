"""What a training stage's time goes into."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ldmkit.recipe.data import Data

MAX_WAIT = 0.05
"""share of the time spent waiting for data that is worth a word"""


class Clock:
    """Seconds of a stage, those before a resumed run began among them, and the share spent waiting for data."""

    def __init__(self, seconds: float = 0.0) -> None:
        """Begins to count; `seconds` went into the stage before."""
        self._before = seconds
        self._began = self._marked = time.monotonic()
        self._waited = self._waited_at_mark = 0.0

    def seconds(self) -> float:
        """Spent on the stage, over all runs that it took."""
        return self._before + time.monotonic() - self._began

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The block's time counts as waiting, as that around fetching a batch does; blocks do not nest.

        On a GPU an upper bound: it may be busy with the step before meanwhile.
        """
        entered = time.monotonic()
        try:
            yield
        finally:
            self._waited += time.monotonic() - entered

    def share_since_mark(self) -> float:
        """Share of the time since the last call that was waiting, in [0, 1]; marks the time for the next call."""
        now = time.monotonic()
        share = (self._waited - self._waited_at_mark) / max(now - self._marked, 1e-9)
        self._marked, self._waited_at_mark = now, self._waited
        return share

    def share(self) -> float:
        """Share of the time since the clock began that was waiting, in [0, 1]."""
        return self._waited / max(time.monotonic() - self._began, 1e-9)

    def advice(self, stage: str, data: Data) -> str | None:
        """How long the network waited for data and what would change that; None where it is not worth a word."""
        if (share := self.share()) <= MAX_WAIT:
            return None
        advice = "the cached latents are read slowly; keep the run on a faster disk"
        if stage == "vae":
            advice = (
                f"a higher data.num_workers (now {data.num_workers}; this machine has {os.cpu_count() or 1} cores) "
                "decodes more at once"
            )
        return f"{share:.0%} of the time went into waiting for data: {advice}"
