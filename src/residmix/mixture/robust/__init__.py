"""Rows that belong to no cluster, or lie far out in one: uniform noise and Student-t components."""
