"""One protocol, many models: a `Pair` goes in, a `Location` comes out."""

from differad.locators.base import Locator, Outcome, attempt
from differad.locators.embedded import EmbeddedLocator
from differad.locators.registry import load_locator

__all__ = ["EmbeddedLocator", "Locator", "Outcome", "attempt", "load_locator"]
