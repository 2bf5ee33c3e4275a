"""How good a locator is: predictions on disk, metrics with intervals, trivial baselines, a report."""
