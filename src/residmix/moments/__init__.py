"""Weighted second moments: from one tile of rows to parameters."""
