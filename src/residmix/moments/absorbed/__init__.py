"""Least squares with factors of so many levels that they have sums in place of columns."""
