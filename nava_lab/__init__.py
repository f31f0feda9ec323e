"""nava-lab: compare the families of joint audio-video generators at equal parameters, compute and data."""

from nava_lab import _torchvision_repair

_torchvision_repair.install()

__version__ = "0.1.0"
