"""Random effects of one factor, and of several crossed factors."""
