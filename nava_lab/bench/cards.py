"""The card that a bench ran on: its name, what it can do at most, and what a training step should come to on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from nava_lab.report.numbers import short

# Dense bf16 FLOPs per second, half of what NVIDIA's data sheets promise with sparsity, by the name that the driver tells:
# cards of one letter and number differ.
PEAKS = {
    "NVIDIA H200": 989.4e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    **dict.fromkeys(("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "NVIDIA A100-PCIE-40GB", "NVIDIA A100 80GB PCIe"), 312e12),
    "NVIDIA L40": 181e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA GeForce RTX 4090": 165e12,
}
# In bf16 and compiled:
LARGE, MFU = 500_000_000, 0.5  # from so many weights on a step should use at least this share of the card
SMALL, TO_KERNELS = 10_000_000, 2.0  # up to so many weights it may take at most so many times its kernels


def card(device: torch.device) -> str:
    """A GPU's name as its driver tells it; "cpu" for none."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def used(name: str, flops_per_second: float) -> float | None:
    """The share of a card's dense bf16 peak; None for one whose peak is not known."""
    return flops_per_second / PEAKS[name] if name in PEAKS else None


def kernel_seconds(events: Sequence[Any]) -> float:
    """What the kernels among a profile's events took on the device, one after the other; copies and annotations are none."""
    return 1e-9 * sum(event.duration_ns() for event in events if event.activity_type() == "kernel")


def not_judged_on_card(row: Mapping[str, Any]) -> str:
    """Why a row of a GPU is held against no target; empty where it is held against one."""
    if not (str(row["precision"]).startswith("bf16") and row["compiled"]):
        return f"in {row['precision']}, {'compiled' if row['compiled'] else 'eager'}; targets are for bf16, compiled"
    if SMALL < row["parameters"] < LARGE:
        return f"of {short(row['parameters'])} weights; targets are for up to {short(SMALL)} and from {short(LARGE)} on"
    if row["parameters"] <= SMALL:
        return "its kernels' time is not known" if row["to_kernels"] is None else ""
    return "its card's peak is not known" if row["mfu"] is None else ""


def missed_on_card(row: Mapping[str, Any]) -> list[str]:
    """What a row of a GPU misses, of what is judged: a small model waits for launches, a large one has a card to fill."""
    if not_judged_on_card(row):
        return []
    if row["parameters"] <= SMALL:
        slow = row["to_kernels"] > TO_KERNELS
        return [f"{row['variant']} {row['to_kernels']:.2f} x its kernels (at most {TO_KERNELS})"] if slow else []
    return [f"{row['variant']} {row['mfu']:.2f} of the card's peak (at least {MFU})"] if row["mfu"] < MFU else []
