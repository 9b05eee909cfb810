"""What a fitted Residualizer reports: attributes, tables, scores of rows, warnings."""
