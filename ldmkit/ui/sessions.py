"""What the server keeps for each page that has drawn: its pictures and how to stop its drawing."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ldmkit.errors import LdmkitError

MAX_SESSIONS = 16
MAX_PICTURES = 96
"""of one session; the oldest go first"""


@dataclass
class Session:
    """One page that has drawn."""

    pictures: list[Path] = field(default_factory=list)
    """newest first"""
    selected: Path | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    """of the newest drawing, set where that has ended"""


class Sessions:
    """Sessions by the hash that the page made up. Drawing alone makes one; where there are MAX_SESSIONS, it takes the
    place of the one that was longest without a drawing, of those whose page is closed and which draw nothing."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    def find(self, name: str | None) -> Session | None:
        """The session, None where that page never drew."""
        with self._lock:
            return self._sessions.get(name or "")

    def begin(self, name: str | None) -> Session:
        """The session for a new drawing, with a new `stop`; the drawing before it is stopped.

        Raises LdmkitError where another page would have to give way, and none can.
        """
        key = name or ""
        with self._lock:
            if key not in self._sessions and len(self._sessions) >= MAX_SESSIONS:
                idle = (k for k, each in self._sessions.items() if not self._open[k] and each.stop.is_set())
                if (oldest := next(idle, None)) is None:
                    raise LdmkitError(f"{MAX_SESSIONS} pages are open already; try again once one of them is closed")
                self._remove(self._sessions.pop(oldest).pictures)
            session = self._sessions.setdefault(key, Session())
            self._sessions.move_to_end(key)
            session.stop.set()
            session.stop = threading.Event()
            return session

    @contextmanager
    def open_page(self, name: str) -> Iterator[None]:
        """The page is open as long as the block lasts."""
        with self._lock:
            self._open[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._open[name] -= 1
                if not self._open[name]:
                    del self._open[name]

    def stop(self, name: str | None) -> None:
        """Ends the page's drawing, if there is one, after the step in work."""
        if session := self.find(name):
            session.stop.set()

    def __iter__(self) -> Iterator[Session]:
        """In the order of their last drawings."""
        with self._lock:
            return iter(list(self._sessions.values()))

    def add(self, session: Session, pictures: list[Path]) -> None:
        """Puts new pictures before the others, and forgets the oldest above MAX_PICTURES."""
        with self._lock:
            kept = [*pictures, *(path for path in session.pictures if path not in pictures)]
            session.pictures, dropped = kept[:MAX_PICTURES], kept[MAX_PICTURES:]
            self._remove(dropped)

    def _remove(self, pictures: list[Path]) -> None:
        """Deletes files, but not those that another session shows: the same settings give the same file."""
        shown = {path for session in self._sessions.values() for path in session.pictures}
        for path in pictures:
            if path not in shown:
                path.unlink(missing_ok=True)
