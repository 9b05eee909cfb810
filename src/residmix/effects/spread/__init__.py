"""Effects on the spread (variance) of the features."""
