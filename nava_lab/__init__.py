"""nava-lab: compare the families of joint audio-video generators at equal parameters, compute and data."""

from typing import Any

from nava_lab import _torchvision_repair

_torchvision_repair.install()

__version__ = "0.1.0"

API = ("train", "load_runs", "load_logs", "load_config", "load_model", "compare")


def __getattr__(name: str) -> Any:
    """The functions of ``nava_lab.api``, imported when they are asked for."""
    if name in API:
        from nava_lab import api

        return getattr(api, name)
    raise AttributeError(f"module 'nava_lab' has no attribute '{name}'; it offers {', '.join(API)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *API])
