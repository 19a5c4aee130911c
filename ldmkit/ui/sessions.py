"""What the server keeps for each open page: its pictures and how to stop its drawing."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

MAX_SESSIONS = 16
MAX_PICTURES = 96
"""of one session; the oldest go first"""


@dataclass
class Session:
    """One open page."""

    pictures: list[Path] = field(default_factory=list)
    """newest first"""
    selected: Path | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    """of the drawing in work, set where there is none"""


class Sessions:
    """Sessions by the hash that the page made up, the least recently used forgotten with its pictures."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str | None) -> Session:
        """The session, a new one where there is none."""
        key = name or ""
        with self._lock:
            session = self._sessions.setdefault(key, Session())
            self._sessions.move_to_end(key)
            while len(self._sessions) > MAX_SESSIONS:
                _, forgotten = self._sessions.popitem(last=False)
                forgotten.stop.set()
                self._remove(forgotten.pictures)
            return session

    def __iter__(self) -> Iterator[Session]:
        """The least recently used first."""
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
