"""Tests that are valid after clustering."""
