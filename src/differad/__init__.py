"""differad: one-shot visual inspection. Show a good part and a part to inspect; get what is abnormal and where."""

from importlib.metadata import PackageNotFoundError, version

from differad.core import Location, Pair
from differad.data.manifest import read_pairs
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
from differad.locators import Locator, load_locator

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
try:
    __version__ = version("differad")
except PackageNotFoundError:  # a copied checkout on PYTHONPATH, as on a machine without internet
    __version__ = "0+checkout"
