"""The card that a bench ran on: its name, what it can do at most, and what a training step should come to on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

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
LARGE, MFU = 500_000_000, 0.5  # from so many weights on (in bf16, compiled) a step should use at least this share of the card
SMALL, TO_KERNELS = 10_000_000, 2.0  # up to so many weights (compiled) it may take at most so many times its kernels


def card(device: torch.device) -> str:
    """A GPU's name as its driver tells it; "cpu" for none."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def used(name: str, flops_per_second: float) -> float | None:
    """The share of a card's dense bf16 peak; None for one whose peak is not known."""
    return flops_per_second / PEAKS[name] if name in PEAKS else None


def kernel_seconds(events: Sequence[Any]) -> float:
    """What the kernels among a profile's events took on the device, one after the other; copies and annotations are none."""
    return 1e-9 * sum(event.duration_ns() for event in events if event.activity_type() == "kernel")


def missed_on_card(row: Mapping[str, Any]) -> list[str]:
    """What a row of a GPU misses: a small model waits for launches, a large one has a card to fill; others miss nothing."""
    found = []
    if row["parameters"] <= SMALL and row["to_kernels"] is not None and row["to_kernels"] > TO_KERNELS:
        found.append(f"{row['variant']} {row['to_kernels']:.2f} x its kernels (at most {TO_KERNELS})")
    if row["parameters"] >= LARGE and row["mfu"] is not None and row["mfu"] < MFU:
        found.append(f"{row['variant']} {row['mfu']:.2f} of the card's peak (at least {MFU})")
    return found
