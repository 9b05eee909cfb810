"""Whether predictions lean on confounders: tests by conditional permutation."""
