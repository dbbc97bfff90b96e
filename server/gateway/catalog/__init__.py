"""Bundles that the workers serve."""
