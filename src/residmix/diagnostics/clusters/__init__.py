"""Tests that stay honest after clustering."""
