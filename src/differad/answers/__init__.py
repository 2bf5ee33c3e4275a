"""Prompts and answers of all model families: writing and parsing of boxes, with one layer for units and syntax."""
