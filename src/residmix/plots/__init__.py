"""Plots of models and measurements. Each answers one question, and draws on given or new Axes, which it returns."""
