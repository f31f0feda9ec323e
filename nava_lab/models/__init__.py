"""From a variant's stages to a denoiser. The only floor that assembles blocks."""
