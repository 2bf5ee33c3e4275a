"""Any server that speaks the OpenAI chat API: vLLM, SGLang, `transformers serve`, a cloud.

Retries with back-off and time-outs are the `openai` client's own. Each picture goes over the wire once per question, as a
data URL, in its own bytes where the file already is what a server reads. Knows nothing of how an answer is written.
"""

import base64
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path

from PIL import Image

from differad.answers.formats import FORMATS, answer_format
from differad.answers.parsing import Frame
from differad.answers.resize import ResizeRule
from differad.core import Location, Pair
from differad.errors import LocatorError, MissingExtraError, OptionError
from differad.images import RGB, ImageSource, image_size, read_images
from differad.locators.base import Outcome, check_option, locate_concurrently, option
from differad.locators.chat import chat_messages, to_location

# What the last part of a served model's name begins with, where it tells the family.
NAME_PREFIXES = {
    "qwen2-vl": "qwen2-vl",
    "qwen2.5-vl": "qwen2.5-vl",
    "qwen3-vl": "qwen3-vl",
    "internvl": "internvl",
    "minicpm-v": "minicpm-v",
    "cogvlm": "cogvlm",
}
# Formats that every server decodes, by the mode that they must have to be sent as they are.
_PLAIN = {("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "L")}
_ADDRESS = re.compile(r"openai:(?P<name>[^@\s]+)@(?P<url>https?://[^\s@]+)")


@dataclass(frozen=True)
class ServerOptions:
    """How a server is asked."""

    concurrency: int = option(8, "questions on their way at once")
    timeout: float = option(120.0, "seconds until a question is given up and asked again")
    retries: int = option(4, "times a failed question is asked again, waiting twice as long each time")
    max_new_tokens: int = option(256, "an answer is cut off here")
    temperature: float = option(0.0, "0 takes the likeliest token each time; above 0 answers are sampled")
    seed: int = option(0, "draws the samples, where the server heeds it")
    processor: str | None = option(
        None, "folder with preprocessor_config.json: for families that answer in resized pixels"
    )
    api_key: str | None = option(None, "left out: the environment's OPENAI_API_KEY, else none", secret=True)
    family: str | None = option(None, "answer format; left out: as the model's name implies")

    def __post_init__(self) -> None:
        check_option("concurrency", self.concurrency, self.concurrency >= 1, "at least 1")
        check_option("timeout", self.timeout, self.timeout > 0, "more than 0 seconds")
        check_option("retries", self.retries, self.retries >= 0, "0 or more")
        check_option("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1")
        check_option("temperature", self.temperature, self.temperature >= 0, "0 or more")


def parse_server(value: str) -> tuple[str, str]:
    """`openai:NAME@http://HOST:PORT/v1` as (name, base url). Raises OptionError."""
    match = _ADDRESS.fullmatch(value)
    if match is None:
        raise OptionError(
            f"model {value!r}: expected openai:NAME@http://HOST:PORT/v1, as in openai:qwen@http://127.0.0.1:8000/v1"
        )
    return match["name"], match["url"]


class ServerLocator:
    """A model behind the OpenAI chat API as a locator. Raises OptionError where the family or its resize is unknown."""

    def __init__(self, served_name: str, base_url: str, options: ServerOptions | None = None) -> None:
        self.options = options or ServerOptions()
        self.name = f"openai:{served_name}"
        self.served_name, self.base_url = served_name, base_url
        self.format = answer_format(self.options.family or _family_from_name(served_name))
        self.rule = self._resize_rule()
        try:
            import openai
        except ImportError:
            raise MissingExtraError("a server as the model", "openai", "openai") from None
        self._api_error = openai.APIError
        self._client = openai.OpenAI(
            base_url=base_url,
            # Local servers ask for no key, the client insists on one.
            api_key=self.options.api_key or os.environ.get("OPENAI_API_KEY") or "none",
            timeout=self.options.timeout,
            max_retries=self.options.retries,
        )

    def locate(self, pair: Pair) -> Location:
        """Ask about one pair. Raises ImageError, and LocatorError when the server gives no answer after all retries."""
        start = time.perf_counter()
        width, height = image_size(pair.target)
        frame = Frame(width, height, self.rule.resized(width, height) if self.rule else None)
        images = [{"type": "image_url", "image_url": {"url": url}} for url in data_urls(pair.reference, pair.target)]
        try:
            reply = self._client.chat.completions.create(
                model=self.served_name,
                messages=chat_messages(self.format, images),  # type: ignore[arg-type]
                max_tokens=self.options.max_new_tokens,
                temperature=self.options.temperature,
                seed=self.options.seed,
            )
        except self._api_error as error:
            raise LocatorError(
                f"{self.name} at {self.base_url}: no answer ({_reason(error)}); "
                "check that the server runs, serves this name, and accepts the key"
            ) from None
        text = (reply.choices[0].message.content or "") if reply.choices else ""
        return to_location(text, self.format, frame, self.name, time.perf_counter() - start)

    def locate_many(self, pairs: Iterable[Pair]) -> Iterator[Outcome]:
        """Ask about a stream of pairs, `concurrency` at once, outcomes in order."""
        return locate_concurrently(self, pairs, self.options.concurrency)

    def _resize_rule(self) -> ResizeRule | None:
        if self.format.space == "thousandths":
            return None
        if self.options.processor is None:
            raise OptionError(
                f"family {self.format.family} answers in pixels after its processor's resize: pass "
                "-o processor=FOLDER with the checkpoint's preprocessor_config.json"
            )
        return ResizeRule.from_folder(self.options.processor)


def data_urls(reference: ImageSource, target: ImageSource) -> list[str]:
    """Both pictures as data URLs: files that are plain upright JPEG or PNG as they are, anything else as PNG."""
    plain = [_plain_file_url(source) for source in (reference, target)]
    if None not in plain:
        return [url for url in plain if url is not None]
    decoded = read_images(reference, target)
    return [url or _png_url(image) for url, image in zip(plain, decoded, strict=True)]


def _plain_file_url(source: ImageSource) -> str | None:
    if not isinstance(source, str | Path):
        return None
    path = Path(source)
    try:
        stamp = path.stat()
    except OSError:
        return None
    return _read_plain(str(path), stamp.st_mtime_ns, stamp.st_size)


# A reference is usually shared by the pairs that follow each other.
@lru_cache(maxsize=16)
def _read_plain(path: str, _changed: int, _size: int) -> str | None:
    try:
        with Image.open(path) as image:
            kind = image.format or ""
            is_plain = (kind, image.mode) in _PLAIN and image.getexif().get(0x0112, 1) == 1
            is_plain = is_plain and "transparency" not in image.info
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None  # reading it in full says what is wrong with it
    if not is_plain:
        return None
    return _url(f"image/{kind.lower()}", Path(path).read_bytes())


def _png_url(image: RGB) -> str:
    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return _url("image/png", buffer.getvalue())


def _url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _family_from_name(served_name: str) -> str:
    own = served_name.rpartition("/")[2].lower()
    for prefix, family in NAME_PREFIXES.items():
        if own.startswith(prefix):
            return family
    raise OptionError(
        f"model {served_name!r}: its name implies no answer format; pass --family, one of {', '.join(FORMATS)}"
    )


def _reason(error: Exception) -> str:
    """The client's message with what caused it: "Connection error." alone helps nobody."""
    cause = f": {error.__cause__}" if error.__cause__ else ""
    return f"{error}{cause}"[:300]
