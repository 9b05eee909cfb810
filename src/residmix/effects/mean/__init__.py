"""Effects on the mean: least squares, penalised, random effects, or any regressor."""
