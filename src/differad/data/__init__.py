"""Pairs on disk: manifests and masks."""
