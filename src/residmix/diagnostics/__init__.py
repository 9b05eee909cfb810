"""Measures and tests of the dependence between features, predictions and metadata."""
