"""Ways to estimate the effects of the terms of a design."""
