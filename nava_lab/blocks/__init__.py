"""Blocks and the bridges between towers: one registered class per file, all made of the parts in ``base`` and ``sublayers``."""
