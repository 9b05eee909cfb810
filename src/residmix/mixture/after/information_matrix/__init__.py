"""Standard errors from the information matrix."""
