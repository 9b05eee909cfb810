"""Effects on the mean: by least squares, with a penalty, as random ones, by a regressor."""
