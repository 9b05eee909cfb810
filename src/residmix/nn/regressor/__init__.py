"""MDNRegressor: a mixture density network behind scikit-learn's interface."""
