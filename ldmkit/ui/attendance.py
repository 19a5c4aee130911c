"""Which pages are there: whose heartbeat is held open, and who reads what the server has to say to them."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ldmkit.ui.sessions import Sessions

if TYPE_CHECKING:
    from gradio.queueing import Queue

UNREAD = 15.0
"""seconds for which nobody reads of a drawing, after which it ends; a page that asks for one reads at once"""

JOIN = "/gradio_api/queue/join"
READ = "/gradio_api/queue/data"
HEARTBEAT = "/gradio_api/heartbeat/"


class Attendance:
    """Counts pages while their requests last. Gradio keeps messages, previews and all, until they are read."""

    def __init__(self, sessions: Sessions, queue: "Queue") -> None:
        self._sessions = sessions
        self._queue = queue
        self._readers: Counter[str] = Counter()
        self._looks: dict[str, asyncio.TimerHandle] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def expects(self, name: str) -> bool:
        """Whether a page has asked for something, so that there may be messages for it."""
        return name in self._queue.pending_messages_per_session

    @contextmanager
    def of(self, path: str, name: str) -> Iterator[None]:
        """Around the request for `path` of the page `name`, in the server's loop."""
        if path.startswith(HEARTBEAT):
            with self._sessions.open_page(name):
                yield
        elif path == READ:
            self._readers[name] += 1
            try:
                yield
            finally:
                self._readers[name] -= 1
                if not self._readers[name]:
                    del self._readers[name]
                self._look_later(name)
        else:
            if path == JOIN:
                self._look_later(name)
            yield

    def _look_later(self, name: str) -> None:
        if earlier := self._looks.pop(name, None):
            earlier.cancel()
        self._looks[name] = asyncio.get_running_loop().call_later(UNREAD, self._look, name)

    def _look(self, name: str) -> None:
        del self._looks[name]
        if not self._readers[name]:
            ending = asyncio.ensure_future(self._end(name))
            self._ending.add(ending)  # a loop holds its tasks weakly
            ending.add_done_callback(self._ending.discard)

    async def _end(self, name: str) -> None:
        """Ends the page's drawing, and forgets what was to be said of it."""
        self._sessions.stop(name)
        await self._queue.clean_events(session_hash=name)
        self._queue.pending_messages_per_session.pop(name, None)
        self._queue.pending_event_ids_session.pop(name, None)
