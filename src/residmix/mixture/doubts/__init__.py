"""Warnings about a fitted mixture."""
