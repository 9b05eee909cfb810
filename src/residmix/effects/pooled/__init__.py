"""Effects of levels pooled over features: empirical Bayes."""
