"""Mixture density networks: the head, its distribution, and scores of densities."""
