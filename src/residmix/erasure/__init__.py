"""Erasure of metadata from features."""
