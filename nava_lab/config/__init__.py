"""From YAML and overrides to typed, checked objects. Registries become Hydra groups; unknown keys name the nearest known."""

from nava_lab.config.loading import composed, from_file, load, typed
from nava_lab.config.machine import CONFIGS, device_count, machine_settings
from nava_lab.config.schema import Config, ConfigError, Flow, Output
from nava_lab.config.store import GROUPS, check_choices, explain, quoted, register

__all__ = [
    "CONFIGS",
    "GROUPS",
    "Config",
    "ConfigError",
    "Flow",
    "Output",
    "check_choices",
    "composed",
    "device_count",
    "explain",
    "from_file",
    "load",
    "machine_settings",
    "quoted",
    "register",
    "typed",
]
