"""Instructions on whole registers: what loops are written with where plain numba loses more than a tenth."""
