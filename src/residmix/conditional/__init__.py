"""Mixtures of Gaussians given metadata."""
