"""The layer: a tensor in, the same tensor without what the metadata explains out."""
