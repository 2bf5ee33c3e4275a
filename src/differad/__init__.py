"""differad: one-shot visual inspection. Show a good part and a part to inspect; get what is abnormal and where."""

from importlib.metadata import version

from differad.core import Location, Pair
from differad.data.manifest import read_pairs

__all__ = ["Location", "Pair", "read_pairs"]
__version__ = version("differad")
