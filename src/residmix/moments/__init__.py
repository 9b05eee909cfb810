"""Weighted second moments of rows, and least squares from them."""
