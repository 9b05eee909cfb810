"""Fits to resampled rows."""
