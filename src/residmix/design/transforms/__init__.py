"""Numeric expressions of a formula: what they learn from a whole column, and their values."""
