"""Exact metrics and the protocol that feeds them. Scores are computed on tensors, never on encoded previews."""
