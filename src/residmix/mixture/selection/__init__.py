"""How many components, and of which family: candidates, where their fits begin, and which of them is kept."""
