"""From a `--model` value to a locator: the only module that knows all kinds.

Knows nothing of how they work; each has a dataclass of options, checked here.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from pydantic import TypeAdapter, ValidationError

from differad.errors import OptionError, OptionValueError
from differad.locators.auto import AutoLocator, AutoOptions
from differad.locators.base import Locator
from differad.locators.difference import DifferenceLocator, DifferenceOptions
from differad.locators.features import FeaturesLocator, FeaturesOptions
from differad.locators.local import LocalLocator, LocalOptions
from differad.locators.server import ServerLocator, ServerOptions, parse_server
from differad.locators.tiny import TinyLocator, TinyOptions, holds_policy, result_below
from differad.options import list_options, parts_of
from differad.text import without_user_info

DEFAULT_MODEL = "auto"
_EMBEDDED: dict[str, Callable[[Any], Locator]] = {
    "auto": AutoLocator,
    "difference": DifferenceLocator,
    "features": FeaturesLocator,
    "tiny": TinyLocator,
}
# Locators that take another policy: NAME@FOLDER.
_WITH_POLICY: dict[str, Callable[[Any, Path], Locator]] = {
    "auto": lambda options, folder: AutoLocator(options, folder=folder),
    "tiny": lambda options, folder: TinyLocator(options, folder=folder),
}
SERVER_SCHEME = "openai:"

# What `--model` accepts, with the options that `-o key=value` sets; `differad models` prints it.
KINDS: dict[str, tuple[type, str]] = {
    "auto": (AutoOptions, "features if the reference can be aligned to the target, otherwise tiny; no download"),
    "difference": (DifferenceOptions, "classical: register, compare, threshold; no training, no download"),
    "features": (FeaturesOptions, "frozen backbone, distance to the nearest patch; no training, no download"),
    "tiny": (TinyOptions, "the embedded policy, a small Qwen2-VL on the same backbone; no training, no download"),
    "tiny@FOLDER": (
        TinyOptions,
        "an embedded policy of your own, as `train` writes it (FOLDER alone will do); auto@FOLDER uses it in auto",
    ),
    "FOLDER or HUB/ID": (LocalOptions, "a Qwen2-VL, Qwen2.5-VL or Qwen3-VL checkpoint run by transformers"),
    "openai:NAME@http://HOST:PORT/v1": (ServerOptions, "any OpenAI-compatible server: vLLM, SGLang, a cloud"),
}

Options = TypeVar("Options")


# Overloads for the names of embedded locators, so that a type checker knows their options and `calibrate`.
@overload
def load_locator(model: Literal["auto"] | None = None, *, family: None = None, **options: Any) -> AutoLocator: ...
@overload
def load_locator(model: Literal["difference"], *, family: None = None, **options: Any) -> DifferenceLocator: ...
@overload
def load_locator(model: Literal["features"], *, family: None = None, **options: Any) -> FeaturesLocator: ...
@overload
def load_locator(model: Literal["tiny"], *, family: None = None, **options: Any) -> TinyLocator: ...
@overload
def load_locator(model: str | Path | None, *, family: str | None = None, **options: Any) -> Locator: ...
def load_locator(model: str | Path | None = None, *, family: str | None = None, **options: Any) -> Locator:
    """The locator that a `--model` value names; None gives the embedded default, `auto`. A folder that holds an
    embedded policy is `tiny@FOLDER`.

    `family` overrides the answer format that a checkpoint's config implies. `options` are the fields of the kind's own
    options dataclass. Options of its parts are named PART.NAME (`**{"difference.tolerance": 3}`) or come as a mapping
    (`difference={"tolerance": 3}`). The embedded locators have `options`, `with_options` and `calibrate` besides: a type
    checker knows it for a literal name, otherwise check `isinstance(locator, EmbeddedLocator)`. Raises OptionError for an
    unknown model, family or option, InputError for weights that cannot be read, MissingExtraError if packages that it needs
    are not installed.
    """
    name = DEFAULT_MODEL if model is None else str(model)
    if name in _EMBEDDED:
        _refuse_family(name, family)
        return _EMBEDDED[name](build_options(KINDS[name][0], options, name))
    if name.startswith(SERVER_SCHEME):
        server = build_options(ServerOptions, {**options, "family": family}, without_user_info(name))
        served_name, base_url = parse_server(name)
        return ServerLocator(served_name, base_url, server)
    if "://" in name:
        raise OptionError(f"model {without_user_info(name)!r}: expected openai:NAME@http://HOST:PORT/v1 for a server")
    kind, at, policy_folder = name.partition("@")
    if at and kind in _EMBEDDED:
        return _with_policy(kind, policy_folder, family, options)
    folder = _folder(name)
    if holds_policy(folder):
        return _with_policy("tiny", name, family, options)
    if (result := result_below(folder)) is not None:
        raise OptionError(f"model {name!r}: no checkpoint, but a training run's folder; pass its result, {result}")
    if "/" in name or folder.exists():
        return LocalLocator(name, build_options(LocalOptions, {**options, "family": family}, name))
    raise OptionError(f"model {name!r} does not exist here; expected one of: {', '.join(KINDS)}")


def _with_policy(kind: str, folder: str, family: str | None, options: Mapping[str, Any]) -> Locator:
    """The embedded locator of a kind, with the policy in a folder. Raises OptionError."""
    name = f"{kind}@{folder}"
    if kind not in _WITH_POLICY or not folder:
        raise OptionError(f"model {name!r}: expected {' or '.join(f'{one}@FOLDER' for one in _WITH_POLICY)}")
    _refuse_family(name, family)
    return _WITH_POLICY[kind](build_options(KINDS[kind][0], options, name), _folder(folder))


def _folder(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:  # "~name" of an unknown user
        return Path(text)


def _refuse_family(name: str, family: str | None) -> None:
    if family is not None:
        raise OptionError(f"family {family!r}: {name} has no choice of answer formats; leave --family out")


def build_options(kind: type[Options], values: Mapping[str, Any], model: str) -> Options:
    """`values` as the options dataclass `kind`, text converted to each field's type; see `load_locator` for its parts.

    Raises OptionError.
    """
    own_values, of_parts = _by_part(kind, values, model)
    valid_names = {*(option.name for option in list_options(kind)), *parts_of(kind)}
    for name in (*own_values, *(f"{part}.{name}" for part, inner in of_parts.items() for name in inner)):
        if name not in valid_names:
            raise OptionError(f"option {name!r}: {model} has none of that name; {_known_options(kind, name)}")
    for part, inner in of_parts.items():
        default = own_values.get(part, parts_of(kind)[part])
        start = {field.name: getattr(default, field.name) for field in fields(default)}
        own_values[part] = _validated(type(default), {**start, **inner}, model, part)
    return _validated(kind, own_values, model)


def _by_part(kind: type, values: Mapping[str, Any], model: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The values of the locator's own options (dataclasses of parts included), and of the options of each part."""
    own_values: dict[str, Any] = {}
    of_parts: dict[str, dict[str, Any]] = {}
    parts = parts_of(kind)
    for name, value in values.items():
        part, dot, inner = name.partition(".")
        if part not in parts or (not dot and isinstance(value, type(parts[part]))):
            own_values[name] = value
        elif dot:
            of_parts.setdefault(part, {})[inner] = value
        elif isinstance(value, Mapping):
            of_parts[part] = {**value, **of_parts.get(part, {})}
        else:
            raise OptionError(f"option {name}={value!r} of {model}: expected an option of it, as in {part}.NAME=VALUE")
    return own_values, of_parts


def _known_options(kind: type, name: str) -> str:
    """The options that an unknown `name` may stand for."""
    part, _, inner = name.partition(".")
    valid_names = sorted(option.name for option in list_options(kind))
    parts = parts_of(kind)
    if inner in valid_names and part in parts:
        return f"{inner} is set for the whole"
    if part in parts:
        return f"of {part} it takes {', '.join(one for one in valid_names if one.startswith(f'{part}.'))}"
    own_options = f"it takes {', '.join(one for one in valid_names if '.' not in one)}"
    return f"{own_options}, and PART.NAME for options of {', '.join(parts)}" if parts else own_options


def _validated(kind: type[Options], values: Mapping[str, Any], model: str, part: str = "") -> Options:
    try:
        return TypeAdapter(kind).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(filter(None, (part, *map(str, first["loc"]))))
        raise OptionError(f"option {field}={first['input']!r} of {model}: {first['msg']}") from None
    except OptionValueError as error:
        raise (error.of_part(part) if part else error) from None
