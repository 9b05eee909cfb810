"""One iteration of EM: densities and moments of rows, parameters from moments, parameters as one vector."""
