"""Parts of a mixture given metadata: coefficients, and a gate for the mixing weights."""
