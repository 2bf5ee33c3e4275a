"""Evaluation of locators: predictions on disk, metrics with intervals, trivial baselines, a report."""
