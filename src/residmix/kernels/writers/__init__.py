"""Instructions on whole registers: what loops are written with where plain numba loses more than a tenth.

An iteration of EM in plain numba over the same tiles, one thread of an AMD Zen 5, takes 2.0 times as long (100,000 x 8,
8 components), 2.4 times (1,000,000 x 4, 5) and 3.1 times (100,000 x 32, 16); rows less their effects 3.3 times.
"""
