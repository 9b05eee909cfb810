"""Covariance families as values: what is alike between components, and what follows from that."""
