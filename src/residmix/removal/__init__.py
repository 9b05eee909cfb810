"""Removal of metadata effects from features, with tables and warnings about the fit."""
