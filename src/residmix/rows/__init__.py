"""Rows in blocks, processed by several threads, and summed in a fixed order."""
