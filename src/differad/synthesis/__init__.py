"""Synthetic parts with defects and exact masks, for training, calibration and tests."""
