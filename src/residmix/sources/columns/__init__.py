"""Columns of lists of numbers, and columns that can't be features, with the reason."""
