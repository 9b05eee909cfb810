"""regressor."""
