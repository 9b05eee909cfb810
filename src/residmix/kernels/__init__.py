"""One tile of rows in compiled loops."""
