"""Transport of rows between the distributions of a conditional mixture, and its checks."""
