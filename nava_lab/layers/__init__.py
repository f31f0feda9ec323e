"""Parts that know no modality."""
