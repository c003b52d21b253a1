"""Weights: names, formats and where they come from."""
