"""Compiled loops over a block's rows; importing them imports the compiler."""
