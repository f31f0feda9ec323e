"""What "auto" means on this machine, and which machines can train what."""

from __future__ import annotations

import dataclasses
from typing import Any

from omegaconf import OmegaConf

from nava_lab.config.schema import ConfigError, Machine
from nava_lab.registry import PACKAGE, nearest

CONFIGS = PACKAGE.parent / "configs"
PRECISIONS = ["32-true", "bf16-mixed", "16-mixed"]


def settled(machine: Machine) -> dict[str, Any]:
    """What "auto" means on this machine."""
    import torch

    accelerator, devices, precision = machine.accelerator, machine.devices, machine.precision
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = accelerator in ("gpu", "cuda")
    if on_gpu:
        accelerator = "cuda"
    if devices in ("auto", -1, "-1"):
        devices = max(1, torch.cuda.device_count()) if on_gpu else 1
    if precision == "auto":
        precision = "bf16-mixed" if on_gpu else "32-true"
    return {"accelerator": accelerator, "devices": devices, "precision": precision}


def machine_settings(name: str) -> list[str]:
    """What a choice of ``trainer=NAME`` sets, key by key, over whatever stands there; nothing for no name."""
    if not name:
        return []
    known = sorted(file.stem for file in (CONFIGS / "trainer").glob("*.yaml"))
    if name not in known:
        raise ConfigError(f"trainer={name}: {nearest(name, known)}")
    chosen: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / "trainer" / f"{name}.yaml"))
    settings: dict[str, Any] = dataclasses.asdict(Machine()) | chosen
    return [f"trainer.{key}={value}" for key, value in settings.items()]


def device_count(machine: Machine) -> int:
    """Devices over all machines; those of one are given by their number, or by their own numbers ([0, 2], "0,2")."""
    devices: Any = machine.devices
    if isinstance(devices, str) and "," in devices:
        devices = [part for part in devices.split(",") if part]
    each = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdigit() else 0
    if each < 1:
        raise ConfigError(f"trainer.devices={machine.devices} must be a number of devices, or auto")
    return each * machine.nodes


def check_machine(machine: Machine, training: Any) -> None:
    """Refuse a precision that does not train, and a batch that does not divide among devices and pieces."""
    if machine.precision not in PRECISIONS:
        near = nearest(machine.precision, PRECISIONS)
        raise ConfigError(
            f"trainer.precision={machine.precision}: {near}; known: auto, {', '.join(PRECISIONS)} "
            "(weights and moments themselves stay float32: in bf16 they would lose AdamW's small steps)"
        )
    if machine.precision == "16-mixed" and machine.accelerator == "cpu":
        raise ConfigError("trainer.precision=16-mixed needs a GPU: a CPU has bf16-mixed")
    for name in ("nodes", "accumulate"):
        if getattr(machine, name) < 1:
            raise ConfigError(f"trainer.{name}={getattr(machine, name)} must be at least 1")
    devices, pieces = device_count(machine), machine.accumulate
    for key, count, parts in (("batch_size", training.batch_size, pieces), ("validation_clips", training.validation_clips, 1)):
        if count % (devices * parts):
            among = f"{devices} devices" + (f" and trainer.accumulate={parts} pieces" if parts > 1 else "")
            raise ConfigError(f"training.{key}={count} does not divide among {among}")
