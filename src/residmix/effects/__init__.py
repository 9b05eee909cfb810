"""How the effect of a term is estimated, and what is made of it."""
