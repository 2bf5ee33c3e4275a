"""Procedural parts with defects and their exact masks: what constants are calibrated on and tests run with."""
