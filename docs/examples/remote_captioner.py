"""The captioner `remote`: asks a server with OpenAI's chat completions, on this machine or elsewhere. No packages."""

import base64
import io
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException, InvalidURL
from typing import Annotated, Any
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from pydantic import Field

from ldmkit import LdmkitError, Picture, hookimpl

MAX_ANSWER = 2**20
"""bytes"""
PERMANENT = (ConnectionRefusedError, socket.gaierror, ssl.SSLCertVerificationError, InvalidURL, OverflowError)
"""what an address that was never reached is not tried again for; OverflowError: a port beyond 65535"""
SPEED: dict[str, Any] = {"json_schema_extra": {"affects_result": False}}
"""of options by whose change what is captioned stays captioned"""
OF_ONE_PICTURE = (400, 403, 413, 415, 422, 451)
"""codes that filters and limits of a server give to single pictures, 403 as OpenRouter's moderation"""


@hookimpl
def register_captioners() -> dict[str, Any]:
    """`remote`."""
    return {"remote": Remote}


class _Refused(Exception):
    """The server takes no such picture, however often it is sent."""


class _NotFollowed(HTTPRedirectHandler):
    """A redirection is an answer like others: followed, it would carry the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Remote:
    """Captions by a vision model behind `POST URL/chat/completions`: vLLM, llama.cpp, Ollama, LM Studio, OpenAI.

    Pictures are sent as JPEG in a data URI, several at a time. What may pass (a lost connection, 408, 409, 429, 5xx) is
    tried again, after as long as `Retry-After` says. A picture that the server refuses is left without caption and
    named at the end; where it refuses all, that is a mistake in the recipe.
    """

    url: Annotated[
        str,
        Field(
            pattern=r'^https?://[!"$->A-~]+$',
            description='the API\'s address, such as "http://localhost:8000/v1", without a password or a ?key= in it',
        ),
    ]
    model: Annotated[str, Field(min_length=1, description="model, as the server calls it")]
    prompt: Annotated[str, Field(min_length=1, description="what it is asked about each picture")] = (
        "Describe this picture in one sentence: the subject, its colours, what it does, and the background. "
        "Answer with that sentence alone."
    )
    key_from: Annotated[
        str | None,
        Field(min_length=1, description="environment variable that holds the key; none: no key is sent", **SPEED),
    ] = None
    max_side: Annotated[int, Field(gt=0, description="pixels; larger pictures are shrunk before they are sent")] = 768
    max_tokens: Annotated[int, Field(ge=0, description="longest answer; 0: the server decides")] = 200
    at_once: Annotated[int, Field(gt=0, le=64, description="requests at a time", **SPEED)] = 4
    timeout: Annotated[float, Field(gt=0, description="seconds without a word from the server", **SPEED)] = 120.0
    patience: Annotated[float, Field(ge=0, description="seconds that a picture is tried again for", **SPEED)] = 300.0
    _seen: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    _remarks: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    def batch_size(self) -> int:
        """Pictures that a kill costs at most; several for each request, so that one slow answer holds up few."""
        return 4 * self.at_once

    def caption(self, pictures: Sequence[Picture]) -> list[str | None]:
        """LdmkitError where the server cannot be reached, or takes none of them."""
        key, stop = self._key(), threading.Event()
        captions: list[str | None] = []
        refused: list[str] = []
        with ThreadPoolExecutor(self.at_once) as pool:
            asked = [pool.submit(self._ask, picture, key, stop) for picture in pictures]
            try:
                for picture, answer in zip(pictures, asked, strict=True):
                    try:
                        captions.append(answer.result())
                    except _Refused as error:
                        captions.append(None)
                        refused.append(f"{picture.key}: {error}")
            finally:
                stop.set()  # after an interruption, too: whoever waits to try again is woken
                pool.shutdown(wait=False, cancel_futures=True)
        if len(refused) < len(pictures):
            self._seen.add("a caption")
        elif len(refused) >= self.batch_size or "a caption" not in self._seen:
            raise LdmkitError(
                f"captioner 'remote': {self.url} takes no picture: {refused[0]}; correct caption.model, "
                "caption.max_tokens or caption.key_from"
            )
        self._remarks.extend(refused)
        return captions

    def remarks(self) -> list[str]:
        """Pictures without a caption, and why."""
        return self._remarks

    def _key(self) -> str | None:
        """Read when it is needed: options are written to the run's record, the key is not."""
        if self.key_from is None:
            return None
        if not (key := os.environ.get(self.key_from, "").strip()):
            raise LdmkitError(
                f"captioner 'remote': the environment has no {self.key_from}, which caption.key_from names; "
                f"`export {self.key_from}=...` first"
            )
        if not key.isascii() or not key.isprintable():
            raise LdmkitError(f"captioner 'remote': {self.key_from} holds characters that no key has")
        return key

    def _ask(self, picture: Picture, key: str | None, stop: threading.Event) -> str:
        """What the server says of one picture, tried again within `patience`."""
        request = self._request(picture, key)
        ends, wait = time.monotonic() + self.patience, 1.0
        while True:
            try:
                return self._answer(request)
            except HTTPError as error:
                self._seen.add("an answer")
                reason, asked_to_wait = _reason(error, key), _retry_after(error.headers)
                if error.code in OF_ONE_PICTURE:
                    raise _Refused(reason) from None
                if error.code not in (408, 409, 429) and error.code < 500:
                    wrong = "caption.key_from" if error.code in (401, 402) else "caption.url or caption.model"
                    raise LdmkitError(f"captioner 'remote': {self.url}: {reason}; correct {wrong}") from None
            except (HTTPException, OSError, OverflowError) as error:
                cause = getattr(error, "reason", error)
                reason, asked_to_wait = str(cause) or type(cause).__name__, None
                if isinstance(cause, PERMANENT) and "an answer" not in self._seen:
                    raise LdmkitError(
                        f"captioner 'remote': {self.url} cannot be reached: {reason}; start the server, or correct "
                        "caption.url"
                    ) from None
            pause = wait if asked_to_wait is None else max(asked_to_wait, 0.5)
            if time.monotonic() + pause > ends:
                wanted = "" if asked_to_wait is None else f", and asks to wait {asked_to_wait:.0f} s"
                raise LdmkitError(
                    f"captioner 'remote': {self.url} does not caption {picture.key}: {reason}{wanted}; the same "
                    "command goes on from here once it does"
                )
            if stop.wait(pause):
                raise _Refused("interrupted")
            wait = min(2 * wait, 30.0)

    def _request(self, picture: Picture, key: str | None) -> Request:
        image = picture.load().convert("RGB")
        image.thumbnail((self.max_side, self.max_side))
        jpeg = io.BytesIO()
        image.save(jpeg, "JPEG", quality=90)
        uri = f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"
        content = [{"type": "text", "text": self.prompt}, {"type": "image_url", "image_url": {"url": uri}}]
        body: dict[str, Any] = {"model": self.model, "messages": [{"role": "user", "content": content}]}
        if self.max_tokens:
            body["max_tokens"] = self.max_tokens
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        return Request(f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)

    def _answer(self, request: Request) -> str:
        with build_opener(_NotFollowed).open(request, timeout=self.timeout) as response:
            body = response.read(MAX_ANSWER)
        self._seen.add("an answer")
        try:
            choice = json.loads(body)["choices"][0]
            text = choice["message"]["content"] or ""
            caption = " ".join(text.encode("utf-8", "replace").decode().split())
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise LdmkitError(
                f"captioner 'remote': {self.url} answers something other than a chat completion: {_shown(body)[:200]}; "
                "correct caption.url"
            ) from None
        if not caption:  # filtered, or all tokens went into thinking
            raise _Refused(f"no text in the answer (finish_reason {choice.get('finish_reason')})")
        return caption


def _reason(error: HTTPError, key: str | None) -> str:
    """What the server says, in a line and without the key, which some repeat."""
    said = ""
    with suppress(HTTPException, OSError):
        said = _shown(error.read(MAX_ANSWER))
    with suppress(ValueError, LookupError, TypeError, RecursionError):
        told = json.loads(said)["error"]
        said = str(told["message"] if isinstance(told, dict) else told)
    text = f"{error.code} {error.reason}" + (f", {said[:200]}" if said else "")
    if 300 <= error.code < 400:
        text += f", to {error.headers.get('Location')}"
    return text.replace(key, "***") if key else text


def _shown(body: bytes) -> str:
    return " ".join(body.decode("utf-8", "replace").split())[:2000]


def _retry_after(headers: Message) -> float | None:
    """Seconds that the server asks to wait: RFC 9110, section 10.2.3, a number or a date."""
    given = headers.get("Retry-After", "").strip()
    if given.isascii() and given.isdecimal():
        return float(given)
    try:
        return max(0.0, parsedate_to_datetime(given).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
