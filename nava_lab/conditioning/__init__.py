"""What a model is told besides noise: captions, and reference timbres in or beside them."""
