"""Least squares from moments: which solution, and with how many digits."""
