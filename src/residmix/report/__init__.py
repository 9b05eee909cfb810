"""What a fitted model has to tell, as one page."""
