"""Robust mixtures: uniform noise, Student-t components, trimming, missing values and measurement errors."""
