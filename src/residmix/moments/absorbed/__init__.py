"""Least squares with absorbed factors: factors with too many levels for columns."""
