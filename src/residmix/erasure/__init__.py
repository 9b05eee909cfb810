"""Features from which metadata can't be read."""
