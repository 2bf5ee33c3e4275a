"""`tiny`: the embedded policy. See docs/tiny.md."""

from differad.locators.tiny.folder import holds_policy, result_below
from differad.locators.tiny.locator import WEIGHTS, TinyLocator, TinyOptions

__all__ = ["WEIGHTS", "TinyLocator", "TinyOptions", "holds_policy", "result_below"]
