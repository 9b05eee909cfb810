"""What is there for speed alone; each piece has a plain counterpart that tests compare it with."""
