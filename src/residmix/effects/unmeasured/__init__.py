"""Levels, and combinations of levels, without rows: their effects can't be estimated."""
