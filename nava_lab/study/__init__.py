"""Runs: their identity, their folder, their record."""
