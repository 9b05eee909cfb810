"""Model selection: candidates, their starts, and the choice of the best."""
