"""Levels that fit didn't see: expected effects, and estimates from a few of their rows."""
