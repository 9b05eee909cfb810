"""What a mixture given metadata has besides: coefficients that components share, and a gate for their proportions."""
