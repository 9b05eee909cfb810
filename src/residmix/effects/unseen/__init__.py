"""Levels that fit didn't see: what is expected of them, and what a few of their rows tell."""
