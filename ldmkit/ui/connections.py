"""Connections that end when nothing comes over them; uvicorn by itself waits for a first request without end."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE = 20.0
"""seconds for a request's lines to arrive"""


class ImpatientProtocol(H11Protocol):
    """HTTP that closes a connection on which no request is answered, and none began, between two looks IDLE apart."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        super().connection_made(transport)
        self.loop.call_later(IDLE, self._look, None)

    def _look(self, before: object) -> None:
        """`before`: the request at the last look."""
        if self.transport.is_closing():
            return
        answered = self.cycle is None or self.cycle.response_complete
        if answered and self.cycle is before:
            self.transport.close()
        else:
            self.loop.call_later(IDLE, self._look, self.cycle)
