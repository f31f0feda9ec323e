"""Training through Lightning, blind to architecture."""
