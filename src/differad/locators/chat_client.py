"""Send one request to a chat completions server and return text: deadlines, size limits, secrets, cancellation.

The `openai` client decides what is repeated and after which waits. Each try has a deadline up to the last byte of the answer, and
so have all tries together; a deadline needs asyncio, so requests run on an event loop in a thread of its own.

Knows nothing of images, boxes or prompts.
"""

import asyncio
import os
import socket
import sys
import threading
import weakref
import zlib
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, Field, ValidationError

from differad.errors import LocatorError, MissingExtraError, OptionError
from differad.text import Secrets, printable, without_user_info

if TYPE_CHECKING:
    from openai import AsyncOpenAI

# Limit of an answer in bytes, decompressed. 32,000 tokens are about 0.2 MB.
MAX_ANSWER = 4 * 2**20
_MAX_REDIRECTS = 5
# zlib reads the header of gzip and of zlib itself.
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32


class _Message(BaseModel):
    content: str | None = None
    # Reasoning that a server splits off: vLLM's former name and its present one.
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Completion(BaseModel):
    """The fields of a chat completion that are read."""

    choices: Annotated[list[_Choice], Field(min_length=1)]


class Requests:
    """Requests in flight, which can be cancelled together. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_flight: set[Future[bytes]] = set()
        self._is_cancelled = False

    def run(self, request: Coroutine[Any, Any, bytes], loop: asyncio.AbstractEventLoop) -> bytes:
        """The outcome of `request` on `loop`. Raises CancelledError if it was cancelled, and what it raises."""
        with self._lock:
            if self._is_cancelled:
                request.close()
                raise CancelledError
            future = asyncio.run_coroutine_threadsafe(request, loop)
            self._in_flight.add(future)
        try:
            return future.result()
        finally:
            future.cancel()  # if Ctrl-C ended the wait; otherwise it is done
            with self._lock:
                self._in_flight.discard(future)

    def give_up(self) -> None:
        """Cancel all requests and refuse new ones."""
        with self._lock:
            self._is_cancelled = True
            for future in self._in_flight:
                future.cancel()


class ChatClient:
    """Sends requests to the server at `base_url`; its user and password, if any, are sent as basic authentication.

    `key` is the bearer token. `timeout` bounds each of `retries` + 1 tries, `deadline` all of them and the waits between, in
    seconds. Raises OptionError for an invalid address, MissingExtraError.
    """

    def __init__(self, base_url: str, key: str | None, timeout: float, retries: int, deadline: float) -> None:
        self._user_info, self.address = _split_user_info(base_url)
        self._key, self._timeout, self._retries, self._deadline = key, timeout, retries, deadline
        self._lock = threading.Lock()
        self._session: _Session | None = None
        user, password = self._user_info or ("", "")
        self._secrets = Secrets([key or "", password, f"{user}:{password}" if password else user])
        library = _http_library()
        try:
            library.URL(self.address)
        except library.InvalidURL:
            raise _no_address(base_url) from None

    def hide(self, text: str) -> str:
        """The text with `***` for key and password."""
        return self._secrets.hide(text)

    def ask(self, question: dict[str, Any], requests: Requests) -> str:
        """The answer, with reasoning that the server split off in front. Raises LocatorError, without the locator's name."""
        from openai import OpenAIError

        session = self._open()
        try:
            return _read_completion(requests.run(_create(session.client, question, self._deadline), session.loop))
        except CancelledError:
            raise LocatorError("given up") from None
        except TimeoutError:
            raise LocatorError(
                f"no answer within {self._deadline:g} s, repetitions included; raise deadline or lower concurrency"
            ) from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            problem = f"{where}: {first['msg']}" if where else first["msg"]
            problem = f"a reply that is no chat completion ({self._shown(problem)})"
            raise LocatorError(f"{problem}; is this address a chat completions server's /v1?") from None
        except (OpenAIError, ValueError) as error:
            raise LocatorError(self._failure_text(error)) from None

    def _open(self) -> "_Session":
        with self._lock:
            # A forked process does not have its parent's threads.
            if self._session is None or self._session.process != os.getpid():
                self._session = _Session(self._make_client())
                weakref.finalize(self, self._session.stop).atexit = False
            return self._session

    def _make_client(self) -> "AsyncOpenAI":
        from openai import AsyncOpenAI

        return AsyncOpenAI(
            base_url=self.address,
            api_key=self._key or "none",
            timeout=self._timeout,
            max_retries=self._retries,
            http_client=_http_client(self._timeout, self._user_info),
        )

    def _failure_text(self, error: Exception) -> str:
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        tried = f"after {self._retries + 1} tries"
        if isinstance(error, APITimeoutError):
            return f"no answer within {self._timeout:g} s {tried}; raise timeout or lower concurrency"
        if isinstance(error, APIConnectionError):
            cause = self._shown(str(error.__cause__ or error))
            return f"no connection {tried} ({cause}); is the server up at this address?"
        if not isinstance(error, APIStatusError):
            return f"a reply that cannot be read ({self._shown(str(error))}); see the server's log"
        status = error.status_code
        location = error.response.headers.get("location")
        if 300 <= status < 400 and location:
            origin = self._shown(_origin(location) or "the same address")
            return f"status {status}, a redirect to {origin}, which is not followed; give the address that answers"
        hint = {401: "set the key", 403: "check the key", 404: "check NAME and URL"}.get(status, "see its log")
        return f"status {status} ({self._shown(str(error.message))}); {hint}"

    def _shown(self, text: str) -> str:
        """Text from the server, printable, without secrets and shortened."""
        return printable(self.hide(text))[:200]


class _Session:
    """A client on an event loop in a thread of its own."""

    def __init__(self, client: "AsyncOpenAI") -> None:
        self.client, self.process = client, os.getpid()
        self.loop = _Loop()
        threading.Thread(target=_serve, args=(self.loop, client), daemon=True, name="differad requests").start()

    def stop(self) -> None:
        """End the thread."""
        if self.process == os.getpid():
            self.loop.call_soon_threadsafe(self.loop.stop)


def _serve(loop: asyncio.AbstractEventLoop, client: "AsyncOpenAI") -> None:
    loop.run_forever()
    loop.run_until_complete(client.close())
    loop.close()


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose name lookups do not keep the process from ending: a lookup cannot be interrupted."""

    async def getaddrinfo(self, host: Any, port: Any, **how: Any) -> Any:
        """As `socket.getaddrinfo`, in a thread that ends with the process."""
        result: asyncio.Future[Any] = self.create_future()

        def look_up() -> None:
            settle: Callable[[Any], None] = result.set_result
            outcome: object
            try:
                outcome = socket.getaddrinfo(host, port, **how)
            except (OSError, UnicodeError) as error:
                settle, outcome = result.set_exception, error
            with suppress(RuntimeError):  # the loop has ended
                self.call_soon_threadsafe(lambda: None if result.done() else settle(outcome))

        threading.Thread(target=look_up, daemon=True, name="differad lookup").start()
        return await result


async def _create(client: "AsyncOpenAI", question: dict[str, Any], deadline: float) -> bytes:
    """The body of the server's answer, JSON. Raises TimeoutError."""
    async with asyncio.timeout(deadline):
        response = await client.chat.completions.with_raw_response.create(**question)
    body: bytes = response.http_response.content
    return body


def _read_completion(body: bytes) -> str:
    """The text of the first choice. Raises ValidationError; ValueError if it is too long."""
    if len(body) > MAX_ANSWER:
        raise ValueError(f"longer than {MAX_ANSWER // 2**20} MB")
    message = _Completion.model_validate_json(body).choices[0].message
    content = message.content or ""
    reasoning = message.reasoning_content or message.reasoning
    return f"<think>{reasoning}</think>{content}" if reasoning else content


def _http_library() -> Any:
    """The package that the installed `openai` sends requests with: httpx, or httpx2 from its version 3 on."""
    try:
        from openai import DefaultAsyncHttpxClient
    except ModuleNotFoundError as error:
        if error.name != "openai":
            raise
        raise MissingExtraError("a server", "openai", "openai") from None
    return sys.modules[DefaultAsyncHttpxClient.__mro__[1].__module__]


def _http_client(timeout: float, user_info: tuple[str, str] | None) -> Any:
    """An HTTP client that reads whole answers: within `timeout`, at most MAX_ANSWER bytes, no redirect to another origin."""
    from openai import DefaultAsyncHttpxClient

    library = _http_library()

    class Client(DefaultAsyncHttpxClient):
        async def send(self, request: Any, **how: Any) -> Any:
            try:
                async with asyncio.timeout(timeout):
                    return await self._send_whole(request, {**how, "stream": True, "follow_redirects": False})
            except TimeoutError:
                raise library.ReadTimeout("deadline", request=request) from None

        async def _send_whole(self, request: Any, how: dict[str, Any]) -> Any:
            response = await super().send(request, **how)
            for _ in range(_MAX_REDIRECTS):
                following = response.next_request
                if following is None or not _is_same_origin(request, following):
                    break
                await response.aclose()
                response = await super().send(following, **how)
            try:
                content = await _read_bounded(response)
            finally:
                await response.aclose()
            coded = ("content-encoding", "content-length", "transfer-encoding")
            headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in coded]
            return library.Response(response.status_code, headers=headers, content=content, request=response.request)

    # Answers are short, so no compression is requested. A compressed answer is decompressed within the limit.
    return Client(timeout=timeout, auth=user_info, headers={"Accept-Encoding": "identity"})


def _is_same_origin(request: Any, following: Any) -> bool:
    """Whether a redirect leads to the same server with the same method."""
    old, new = request.url, following.url
    same_origin = (old.scheme, old.host, old.port) == (new.scheme, new.host, new.port)
    return same_origin and request.method == following.method


async def _read_bounded(response: Any) -> bytes:
    """An answer's content, cut off soon after MAX_ANSWER; empty if it cannot be decompressed."""
    content, received = bytearray(), 0
    coding = response.headers.get("content-encoding", "").strip().lower()
    decoder = zlib.decompressobj(_GZIP_OR_ZLIB) if coding in ("gzip", "x-gzip", "deflate") else None
    async for part in response.aiter_raw():
        received += len(part)
        try:
            content += decoder.decompress(part, MAX_ANSWER + 1 - len(content)) if decoder else part
        except zlib.error:
            return b""
        if max(received, len(content)) > MAX_ANSWER:
            break
    return bytes(content)


def _split_user_info(base_url: str) -> tuple[tuple[str, str] | None, str]:
    """User and password of an address, or None, and the address without them. Raises OptionError."""
    try:
        parts = urlsplit(base_url)
    except ValueError:
        raise _no_address(base_url) from None
    user_info, at, host = parts.netloc.rpartition("@")
    user, _, password = user_info.partition(":")
    address = parts._replace(netloc=host).geturl()
    if "@" in address:  # the password holds a slash, which ends the host
        raise _no_address(base_url)
    return (unquote(user), unquote(password)) if at else None, address


def _no_address(text: str) -> OptionError:
    return OptionError(
        f"address {without_user_info(text)!r}: expected http://HOST:PORT/v1; in a password, write / as %2F and @ as %40"
    )


def _origin(address: str) -> str:
    """Scheme, host and port of an address; empty if it has none."""
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}" if host else ""
