"""The processes of a run under `accelerate launch`; without it there is one, and no torch."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from ldmkit.errors import Interrupted, lost_process


class Launch:
    """What the launcher told this process of itself and the others."""

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.is_first = int(os.environ.get("RANK", "0")) == 0
        """whether this process reads, writes and speaks for all"""

    @contextmanager
    def together(self) -> Iterator[None]:
        """Says goodbye to the others in the end, and lets the first process alone tell of a signal."""
        try:
            yield
        except Interrupted as interrupted:
            self._part()
            if self.is_first:
                raise
            sys.exit(interrupted.exit_code)
        except RuntimeError as error:
            if (lost := lost_process(error)) is None:
                raise
            raise lost from None
        self._part()

    def wait(self) -> None:
        """Every process comes here: they wait for one another."""
        if self.count > 1:
            from ldmkit.training.device import processes

            processes().wait_for_everyone()

    def _part(self) -> None:
        """Not after an error: the others wait in a barrier that this process will not reach, and the launcher acts."""
        if self.count > 1:
            from ldmkit.training.device import processes

            processes().destroy_process_group()
