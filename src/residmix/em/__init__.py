"""The EM loop, its runs and its callbacks."""
