"""`features`: the locator on a frozen backbone, without training. See docs/features.md."""

from differad.locators.features.locator import FUSED, FeaturesLocator, FeaturesOptions

__all__ = ["FUSED", "FeaturesLocator", "FeaturesOptions"]
