"""Solvers of the sampling ODE and SDE, one file each; ``base`` says what a solver is."""
