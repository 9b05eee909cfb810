"""Covariance families as values: what components share, and the estimates that follow."""
