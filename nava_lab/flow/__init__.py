"""Rectified flow: path, noise-level laws, objective, solvers. Blind to architecture and to data."""
