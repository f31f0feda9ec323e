"""``python -m nava_lab`` is ``nava``."""

from nava_lab.cli import main

main()
