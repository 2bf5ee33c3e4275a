"""One protocol, many models: a `Pair` goes in, a `Location` comes out."""

from differad.locators.base import Locator, Outcome, attempt

__all__ = ["Locator", "Outcome", "attempt"]
