"""differad: one-shot visual inspection. Compares an image of a good part with one to inspect, and locates what is abnormal."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from differad.errors import (
    DifferadError,
    ImageError,
    InputError,
    InputWarning,
    LocatorError,
    ManifestError,
    MissingExtraError,
    OptionError,
)

if TYPE_CHECKING:
    from differad.core import Location, Pair
    from differad.data.manifest import read_pairs
    from differad.locators import Locator, load_locator

    __version__: str

__all__ = [
    "DifferadError",
    "ImageError",
    "InputError",
    "InputWarning",
    "Location",
    "Locator",
    "LocatorError",
    "ManifestError",
    "MissingExtraError",
    "OptionError",
    "Pair",
    "load_locator",
    "read_pairs",
]
# Loaded on first access: the command line must be able to answer Ctrl-C before half a second of imports.
_MODULES = {
    "Location": "differad.core",
    "Pair": "differad.core",
    "Locator": "differad.locators",
    "load_locator": "differad.locators",
    "read_pairs": "differad.data.manifest",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(import_module(_MODULES[name]), name)
    elif name == "__version__":
        value = _version()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("differad")
    except PackageNotFoundError:  # a copied checkout on PYTHONPATH, as on a machine without internet
        return "0+checkout"
