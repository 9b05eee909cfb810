"""What a fitted Residualizer tells: attributes, tables, scores of rows, warnings."""
