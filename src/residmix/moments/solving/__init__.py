"""Least squares from moments: the choice of a solution, and its accuracy."""
