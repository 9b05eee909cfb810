"""What one does with a fitted mixture."""
