"""Worlds: audio-video data whose events are known, one registered class per file."""
