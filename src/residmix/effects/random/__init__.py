"""Effects of levels as draws from a normal distribution: of one factor, and of several crossed ones."""
