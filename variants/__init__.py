"""One file per variant; registering it is all it takes. Reading this folder is reading the catalogue."""
