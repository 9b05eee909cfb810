"""Confounder tests of predictions by conditional permutation."""
