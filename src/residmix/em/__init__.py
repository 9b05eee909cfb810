"""The loop of EM, its runs, and who listens to it."""
