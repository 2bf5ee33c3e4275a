"""`tiny`: the embedded policy. See docs/tiny.md."""

from differad.locators.tiny.locator import TinyLocator, TinyOptions

__all__ = ["TinyLocator", "TinyOptions"]
