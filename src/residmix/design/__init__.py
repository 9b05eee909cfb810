"""From metadata to columns: formulas, what they learn, and the matrix that they make of rows."""
