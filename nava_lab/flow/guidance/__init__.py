"""Guidance: terms and modifiers, one file each; ``base`` says what they are, ``algebra`` puts them together."""
