"""Pictures of models and measurements: one question each; they take an Axes, or make one, and return it."""
