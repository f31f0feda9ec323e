"""How a model is trained, as numbers (no Lightning here, so that configs load fast)."""

from __future__ import annotations

import math
from dataclasses import dataclass

TERMINATED = 128 + 15  # the status, as shells tell it, of what SIGTERM has ended


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    Attributes:
        steps: optimiser steps.
        batch_size: clips per step over all devices together.
        lr: peak learning rate.
        warmup: share of the steps in which the rate rises linearly; it then falls to 0 along a cosine.
        beta1: AdamW's first moment.
        beta2: AdamW's second moment.
        weight_decay: on matrices only, not on biases, norms, tables and embeddings.
        clip_norm: gradient norm above which gradients are scaled down.
        ema_half_life: half-life of the averaged weights, as a share of the steps; 0 for no averaging.
        validations: how often the validation loss is taken, evenly spread; 0 for never.
        validation_clips: on how many clips.
        checkpoints: how often the run is saved on the way, evenly spread. Saving changes no number, so neither this nor the
            next is a part of what a run is.
        checkpoint_minutes: after how many minutes since it was last saved it is saved besides; 0 for never. Where both are 0
            nothing is saved on the way, nor when the run is asked to end (SIGTERM).
    """

    steps: int = 400
    batch_size: int = 64
    lr: float = 3e-3
    warmup: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_half_life: float = 0.02
    validations: int = 10
    validation_clips: int = 128
    checkpoints: int = 10
    checkpoint_minutes: float = 10.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "lr", "clip_norm", "validation_clips"):
            if not getattr(self, name) > 0:
                raise ValueError(f"training.{name}={getattr(self, name)} must be positive")
        for name in ("warmup", "beta1", "beta2", "ema_half_life"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"training.{name}={getattr(self, name)} must lie in [0, 1)")
        for name in ("weight_decay", "validations", "checkpoints", "checkpoint_minutes"):
            if getattr(self, name) < 0:
                raise ValueError(f"training.{name}={getattr(self, name)} must not be negative")

    def rate(self, step: int) -> float:
        """Share of the peak learning rate at a step."""
        warm = max(1, round(self.warmup * self.steps))
        return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.steps)))

    @property
    def saves(self) -> bool:
        """Whether anything is saved on the way."""
        return bool(self.checkpoints or self.checkpoint_minutes)

    def saved_after(self) -> frozenset[int]:
        """The steps after which the run is saved: evenly spread between start and end, and never on a validation's step.

        A run killed between a checkpoint and the validation of the same step would resume past that validation, and its line
        would be missing from the log.
        """
        every = self.every(self.validations)
        moments = set()
        for number in range(1, self.checkpoints + 1):
            step = max(1, round(number * self.steps / (self.checkpoints + 1)))
            while every > 1 and step % every == 0:
                step += 1
            moments.add(step)
        return frozenset(moments)

    def every(self, times: int) -> int:
        """Steps between ``times`` evenly spread moments."""
        return max(1, self.steps // times) if times else 0
