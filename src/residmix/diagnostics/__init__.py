"""What of the metadata is left in features."""
