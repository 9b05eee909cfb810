"""What a fitted mixture should make its user look at."""
