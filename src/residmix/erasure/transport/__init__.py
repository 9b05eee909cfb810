"""Transport of rows between the laws that a conditional mixture gives them, and what it is worth."""
