"""Effects on the spread, beside those on the mean."""
