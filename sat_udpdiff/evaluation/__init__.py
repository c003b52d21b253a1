"""Measures of generated clips."""
