"""Any server with OpenAI's chat completions API: vLLM, SGLang, `transformers serve`, a cloud.

Each request holds both images as data URLs: the file's own bytes if the server would decode the same pixels from them, else a
PNG. `chat_client` sends it.

Knows nothing of how a box is written; `answers` does. A server does not return the size to which it resized an image, so families
that answer in resized pixels need a folder with the settings of their image processor.
"""

import base64
import copy
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from differad.answers.formats import FORMATS, AnswerFormat, answer_format
from differad.answers.parsing import Frame
from differad.answers.prompts import SYSTEM, prompt_text
from differad.answers.resize import ResizeRule
from differad.core import Location, Pair
from differad.errors import ImageError, LocatorError, OptionError
from differad.images import RGB, ImageSource, read_header, read_images
from differad.locators.base import Outcome, locate_concurrently
from differad.locators.chat import Reply, to_location, user_content
from differad.locators.chat_client import ChatClient, Requests
from differad.locators.comparable import doubt_normal
from differad.locators.remembered import LRUCache
from differad.options import check_at_least, option
from differad.text import without_user_info

# Prefixes of the names of published checkpoints, without the owner, in lower case; the longest match counts.
FAMILY_PREFIXES: dict[str, str] = {
    "qwen-vl": "qwen-vl",
    "qwen2-vl": "qwen2-vl",
    "qwen2.5-vl": "qwen2.5-vl",
    "qwen3-vl": "qwen3-vl",
    "qwen3.5": "qwen3-vl",
    "qwen4-exp": "qwen3-vl",
    "gemma-3": "gemma",
    "gemma-4": "gemma",
    "glm-4.1v": "glm-v",
    "glm-4.5v": "glm-v",
    "glm-4.6v": "glm-v",
    "lfm2-vl": "lfm-vl",
    "lfm2.5-vl": "lfm-vl",
    "lfm3-vl": "lfm-vl",
    "smolvlm": "plain",
    "mistral-small-3": "plain",
    "pixtral": "plain",
    "internvl": "internvl",
    "minicpm-v": "minicpm-v",
    "minicpm-o": "minicpm-v",
    "mantis": "mantis",
    "mplug-owl3": "mplug-owl3",
    "cogvlm": "cogvlm",
    "univg-r1": "univg-r1",
    "migician": "migician",
}
_ADDRESS = re.compile(r"openai:(?P<name>.+?)@(?P<url>https?://[^/\s?#]+[^\s?#]*)")
_MIMES = {"JPEG": "image/jpeg", "PNG": "image/png"}
_CACHED_IMAGES = 8
# The default deadline in tries: a server that is silent for three whole tries will not answer the next one either.
_DEADLINE_TRIES = 3


@dataclass(frozen=True)
class ServerOptions:
    """How requests are sent to a server."""

    concurrency: int = option(8, "requests in flight at once")
    timeout: float = option(120.0, "seconds for a request and its whole answer, before it is cancelled and repeated")
    deadline: float | None = option(None, "seconds for a request with all its repetitions; none: three times timeout")
    retries: int = option(4, "repetitions of a failed request, after waits that double from half a second to eight")
    max_tokens: int = option(1024, "an answer is cut off after this many tokens")
    temperature: float = option(0.0, "0 takes the likeliest token")
    seed: int | None = option(None, "of the server's sampling, if it supports one; none: not sent")
    api_key_env: str = option("OPENAI_API_KEY", "environment variable that holds the key; unset: the key is 'none'")
    processor: str | None = option(
        None, "folder with the model's preprocessor_config.json, for families that answer in resized pixels"
    )
    family: str | None = option(None, "the answer format; none: what the model's name implies")

    def __post_init__(self) -> None:
        check_at_least("concurrency", self.concurrency, 1)
        check_at_least("timeout", self.timeout, 0.001)
        check_at_least("deadline", self.deadline, 0.001)
        check_at_least("retries", self.retries, 0)
        check_at_least("max_tokens", self.max_tokens, 1)
        check_at_least("temperature", self.temperature, 0)
        if self.family is not None:
            answer_format(self.family)


def parse_server(value: str) -> tuple[str, str]:
    """`openai:NAME@http://host:port/v1` as (name, base URL), user and password still in it. Raises OptionError."""
    match = _ADDRESS.fullmatch(value)
    if match is None:
        raise OptionError(f"model {without_user_info(value)!r}: expected openai:NAME@http://HOST:PORT/v1")
    return match["name"], match["url"]


def family_of_name(name: str) -> str:
    """The family that a served model's name implies, by `FAMILY_PREFIXES`. Raises OptionError if it implies none."""
    last = name.rsplit("/", 1)[-1].lower()
    fitting = [prefix for prefix in FAMILY_PREFIXES if last.startswith(prefix)]
    if not fitting:
        raise OptionError(
            f"model {name!r}: its name implies no answer format; pass --family, one of {', '.join(FORMATS)}"
        )
    return FAMILY_PREFIXES[max(fitting, key=len)]


class ServerLocator:
    """Runs a served model on pairs, several at once. Safe to use from several threads."""

    def __init__(self, name: str, base_url: str, options: ServerOptions | None = None) -> None:
        self.options = options or ServerOptions()
        self._served = name
        self._format = answer_format(self.options.family or family_of_name(name))
        self._rule = _resize_rule(self._format, self.options.processor)
        self.weights = (Path(self.options.processor),) if self.options.processor else ()
        key = _key(self.options.api_key_env)
        timeout, deadline = self.options.timeout, self.options.deadline
        self._client = ChatClient(base_url, key, timeout, self.options.retries, deadline or _DEADLINE_TRIES * timeout)
        self._requests = Requests()
        self.name = f"openai:{name}@{self._client.address}"
        self._files = _FileUrls(_CACHED_IMAGES)

    def locate(self, pair: Pair) -> Location:
        """Where the target is abnormal. Raises ImageError; LocatorError if there is no answer after all repetitions."""
        start = time.perf_counter()
        reference, target = read_images(pair.reference, pair.target)
        height, width = target.shape[:2]
        frame = Frame(width, height, resized=self._rule.resized(width, height) if self._rule else None)
        text = self._request(self._url(pair.reference, reference), self._url(pair.target, target))
        location = to_location(Reply(text, frame), self._format, self.name, time.perf_counter() - start)
        hide = self._client.hide  # a server may repeat secrets that it received
        location = replace(location, answer=hide(location.answer), reasoning=hide(location.reasoning))
        return doubt_normal(location, reference, target)

    def locate_many(self, pairs: Iterable[Pair]) -> Iterator[Outcome]:
        """Locate a stream in order; at most two pairs per allowed request are read ahead.

        If the stream is left early, requests in flight are cancelled.
        """
        stream = copy.copy(self)
        stream._requests = Requests()
        return locate_concurrently(stream, pairs, self.options.concurrency, stream._requests.give_up)

    def _url(self, source: ImageSource, pixels: RGB) -> str:
        url = self._files.get(Path(source)) if isinstance(source, str | Path) else None
        return url or _png_url(pixels)

    def _request(self, reference: str, target: str) -> str:
        request: dict[str, Any] = {
            "model": self._served,
            "max_tokens": self.options.max_tokens,
            "temperature": self.options.temperature,
            "messages": [
                {"role": "system", "content": SYSTEM},
                {"role": "user", "content": user_content(prompt_text(self._format), _image(reference), _image(target))},
            ],
        }
        if self.options.seed is not None:
            request["seed"] = self.options.seed
        try:
            return self._client.ask(request, self._requests)
        except LocatorError as error:
            raise LocatorError(f"{self.name}: {error}") from None


class _FileUrls:
    """Data URLs of files that can be sent as they are; the last few are cached, since many targets share a reference."""

    def __init__(self, size: int) -> None:
        # Empty for a file that cannot be sent as it is.
        self._cache: LRUCache[tuple[str, int, int], str] = LRUCache(size)

    def get(self, path: Path) -> str | None:
        """The file's bytes as a data URL; None if a server could decode other pixels from them than we do."""
        try:
            return self._get(path)
        except (OSError, ImageError):  # removed or unreadable since its pixels were read: the pixels are sent instead
            return None

    def _get(self, path: Path) -> str | None:
        status = path.stat()
        key = (str(path), status.st_mtime_ns, status.st_size)
        return self._cache.recall(key, lambda: _file_url(path) or "") or None


def _file_url(path: Path) -> str | None:
    header = read_header(path)
    mime = _MIMES.get(header.format)
    return _data_url(path.read_bytes(), mime) if header.is_plain and mime else None


def _png_url(pixels: RGB) -> str:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return _data_url(buffer.getvalue(), "image/png")


def _data_url(data: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


def _image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def _resize_rule(family_format: AnswerFormat, processor: str | None) -> ResizeRule | None:
    if processor is not None:
        return ResizeRule.from_folder(processor)
    if family_format.space == "resized":
        raise OptionError(
            f"family {family_format.family!r} answers in pixels of the image as resized by the server; pass -o processor=FOLDER "
            "with the model's preprocessor_config.json"
        )
    return None


def _key(variable: str) -> str | None:
    """The key in an environment variable. Raises OptionError where its value cannot be sent in a header."""
    key = os.environ.get(variable)
    if key and not (key.isascii() and key.isprintable()):
        raise OptionError(
            f"environment variable {variable}: its value contains line ends or non-ASCII characters; expected the key alone"
        )
    return key
