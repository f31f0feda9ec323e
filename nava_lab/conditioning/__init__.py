"""What a model is told besides noise: text (and, later, timbre)."""
