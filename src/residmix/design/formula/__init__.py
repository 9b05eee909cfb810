"""Formulas: text in, terms out."""
