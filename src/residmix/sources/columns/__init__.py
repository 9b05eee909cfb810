"""Columns that are more than numbers: lists of them, and those that are no features, with the reason."""
