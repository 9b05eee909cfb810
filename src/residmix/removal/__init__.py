"""Taking out what the metadata explain, and telling what was done."""
