"""From a `--model` value to a locator: the one place that knows all kinds.

Knows nothing of how any of them works; each comes with a dataclass of options, checked here.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from differad.errors import OptionError
from differad.locators.auto import AutoLocator, AutoOptions
from differad.locators.base import Locator
from differad.locators.difference import DifferenceLocator, DifferenceOptions
from differad.locators.features import FeaturesLocator, FeaturesOptions
from differad.locators.local import LocalLocator, LocalOptions
from differad.locators.server import ServerLocator, ServerOptions, parse_server
from differad.locators.tiny import TinyLocator, TinyOptions

DEFAULT_MODEL = "auto"
_EMBEDDED: dict[str, Callable[[Any], Locator]] = {
    "auto": AutoLocator,
    "difference": DifferenceLocator,
    "features": FeaturesLocator,
    "tiny": TinyLocator,
}
SERVER_SCHEME = "openai:"

# What `--model` accepts, with the options that `-o key=value` sets; `differad models` prints it.
KINDS: dict[str, tuple[type, str]] = {
    "auto": (AutoOptions, "features where the reference can be laid on the target, tiny elsewhere; no download"),
    "difference": (DifferenceOptions, "classical: register, compare, threshold; no training, no download"),
    "features": (FeaturesOptions, "frozen backbone, distance to the nearest patch; no training, no download"),
    "tiny": (TinyOptions, "the embedded policy, a small Qwen2-VL on the same backbone; no training, no download"),
    "FOLDER or HUB/ID": (LocalOptions, "a Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint run by transformers"),
    "openai:NAME@http://HOST:PORT/v1": (ServerOptions, "any OpenAI-compatible server: vLLM, SGLang, a cloud"),
}

Options = TypeVar("Options")


def load_locator(model: str | Path | None = None, *, family: str | None = None, **options: Any) -> Locator:
    """The locator that a `--model` value names; None gives the embedded default, `auto`.

    `family` overrides the answer format that a checkpoint's config implies. `options` are the fields of the kind's own
    options dataclass. Raises OptionError for an unknown model, family or option, MissingExtraError where the kind needs
    packages that are not installed.
    """
    name = DEFAULT_MODEL if model is None else str(model)
    if name in _EMBEDDED:
        if family is not None:
            raise OptionError(f"family {family!r}: {name} has no choice of answer formats; leave --family out")
        return _EMBEDDED[name](build_options(KINDS[name][0], options, name))
    if name.startswith(SERVER_SCHEME):
        server = build_options(ServerOptions, {**options, "family": family}, name)
        served_name, base_url = parse_server(name)
        return ServerLocator(served_name, base_url, server)
    if "/" in name or Path(name).exists():
        return LocalLocator(name, build_options(LocalOptions, {**options, "family": family}, name))
    raise OptionError(f"model {name!r} does not exist here; expected one of: {', '.join(KINDS)}")


def build_options(kind: type[Options], values: Mapping[str, Any], model: str) -> Options:
    """`values` as the options dataclass `kind`, text converted to each field's type. Raises OptionError."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise OptionError(f"option {name!r}: {model} has none of that name; it takes {', '.join(sorted(known))}")
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise OptionError(f"option {field}={first['input']!r} of {model}: {first['msg']}") from None
