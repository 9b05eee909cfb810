"""Mixtures of Gaussians: E-step, families, M-step, starts, density."""
