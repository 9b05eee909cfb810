"""What a fit has no rows of: levels, and combinations of levels, whose effects can't be estimated."""
