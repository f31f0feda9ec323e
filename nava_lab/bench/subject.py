"""One variant's training step as the bench takes it apart: clips and draws, forward, backward, optimiser.

The step is written out instead of run by Lightning, so that its parts can be timed; what Lightning's loop adds is measured apart.
The optimiser's part is all that comes after the gradients: clipping, AdamW, the average of the weights, emptying the gradients.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from nava_lab.bench.cards import kernel_seconds
from nava_lab.bench.products import Product, recorded
from nava_lab.config import Config, ConfigError, device_count
from nava_lab.rng import generators, stable_seed
from nava_lab.study.build import network, parts
from nava_lab.study.run import device_of
from nava_lab.training.averaging import averaging
from nava_lab.training.data import WorldData
from nava_lab.training.machine import prepare_layers
from nava_lab.training.module import GenerativeModule

PHASES = ("data", "forward", "backward", "optimiser")


def check_timed(config: Config) -> None:
    """Refuse what would change a training's step and is not in this one."""
    machine = config.trainer
    left_out = {
        f"trainer.accumulate={machine.accumulate}": machine.accumulate > 1,
        f"trainer.devices={machine.devices} on trainer.nodes={machine.nodes} (nava bench devices)": device_count(machine) > 1,
        f"trainer.strategy={machine.strategy} (nava bench devices)": machine.strategy != "auto",
        f"trainer.precision={machine.precision} (whose scaled losses are no part of this step)": machine.precision == "16-mixed",
    }
    if found := [name for name, asked in left_out.items() if asked]:
        raise ConfigError(f"this bench times a plain step on one device: leave out {', '.join(found)}")


class Subject:
    """A variant at its size, ready to train.

    Args:
        config: as for ``nava train``; what this step leaves out is refused (``check_timed``).
        label: its row in the table.
    """

    def __init__(self, config: Config, label: str = ""):
        check_timed(config)
        config.world.prepare()
        self.config, self.device = config, device_of(config)
        self.label = label or config.variant.name
        torch.manual_seed(stable_seed("init", config.seed))
        self.built = parts(config)
        self.module = self._module().to(self.device)
        self.model = self.module.network
        self.optimizer: torch.optim.AdamW = self.module.configure_optimizers()["optimizer"]
        averaged = list(self.model.parameters()) if config.training.ema_half_life else []
        self.average = [part.detach().clone() for part in averaged]
        self.parameters = sum(part.numel() for part in self.model.parameters())
        self.steps = 0

    def _module(self) -> GenerativeModule:
        config, built = self.config, self.built
        model = network(config, built.solution)
        prepare_layers(model, config.trainer.compile, config.trainer.checkpoint_activations)
        return GenerativeModule(model, built.objective, built.drawing, config.training, config.seed)

    @property
    def batch_size(self) -> int:
        return self.config.training.batch_size

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def now(self) -> float:
        """Seconds, when the device has done all that it was given."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def reduced(self) -> torch.autocast:
        """The precision that the config trains in."""
        wanted = str(self.config.trainer.precision).startswith("bf16")
        return torch.autocast(self.device.type, torch.bfloat16, enabled=wanted)

    def whole(self) -> dict[str, float]:
        """One step as ``step``, in which nobody waits for the device: its phases are then when they were given out."""
        return self.step(time.perf_counter)

    def step(self, now: Callable[[], float] | None = None) -> dict[str, float]:
        """One step on the next clips; seconds of each phase, by a clock (``self.now``)."""
        now = now or self.now
        moments = [now()]
        index = torch.arange(self.steps * self.batch_size, (self.steps + 1) * self.batch_size)
        batch = self.config.world.sent("train", index, self.device)
        draws = self.built.drawing(batch.streams, generators("bench", 0, index.tolist()))
        moments.append(now())
        objective = self.built.objective
        with self.reduced():
            loss = objective.total(objective.per_sample(self.model, batch, draws), objective.counts(batch, draws))
        moments.append(now())
        loss.backward()
        moments.append(now())
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.training.clip_norm)
        self.optimizer.step()
        with torch.no_grad():
            if self.average:
                torch._foreach_lerp_(self.average, list(self.model.parameters()), 0.01)
        self.optimizer.zero_grad()
        moments.append(now())
        self.steps += 1
        return dict(zip(PHASES, (after - before for before, after in pairwise(moments)), strict=True))

    def products(self) -> Counter[Product]:
        """The matrix products of one step."""
        with recorded() as found:
            self.step()
        return found

    def kernels(self, steps: int = 3) -> float:
        """Seconds that a step's kernels take on the card."""
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as watched:
            for _ in range(steps):
                self.whole()
            self.now()
        return kernel_seconds(watched.profiler.kineto_results.events()) / steps  # type: ignore[union-attr]

    def peak(self) -> int:
        """Bytes at the fullest moment of a step: what is there before it (weights, their average, moments), and on top of that
        what the step has asked for and not yet given back."""
        held: list[Tensor] = [*self.model.parameters(), *self.average]
        held += [part for state in self.optimizer.state.values() for part in state.values() if isinstance(part, Tensor)]
        before = sum(part.numel() * part.element_size() for part in held)
        if self.on_gpu:  # on which other subjects and peers lie, too
            others = torch.cuda.memory_allocated(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.step()
            return before + torch.cuda.max_memory_allocated(self.device) - others
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
            self.step()
        events = [event for event in watched.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
        most = now = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            now += event.nbytes()
            most = max(most, now)
        return before + most

    def profile(self, folder: Path) -> list[Path]:
        """Three steps under torch's profiler: a trace for chrome://tracing or Perfetto, and a table of the dearest operators."""
        folder.mkdir(parents=True, exist_ok=True)
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.on_gpu else [])]
        with profile(activities=activities, record_shapes=True) as watched:
            for _ in range(3):
                self.step()
        trace, table = folder / f"{self.label}.json", folder / f"{self.label}.txt"
        watched.export_chrome_trace(str(trace))
        by = "self_cuda_time_total" if self.on_gpu else "self_cpu_time_total"
        shown = watched.key_averages(group_by_input_shape=True).table(sort_by=by, row_limit=60, max_shapes_column_width=60)
        table.write_text(shown, encoding="utf-8")
        return [trace, table]

    def under_lightning(self, steps: int) -> float:
        """Median seconds of a step when Lightning's Trainer runs it, data and all, without logger and checkpoints."""
        training = replace(self.config.training, steps=steps, validations=0, checkpoints=0)
        watch, machine = _Watch(self.now), self.config.trainer
        with tempfile.TemporaryDirectory() as folder:
            trainer = pl.Trainer(
                max_steps=steps,
                max_epochs=-1,
                accelerator=machine.accelerator,
                devices=1,
                precision=machine.precision,  # type: ignore[arg-type]
                gradient_clip_val=training.clip_norm,
                callbacks=[*averaging(training), watch],
                logger=False,
                limit_val_batches=0,
                num_sanity_val_steps=0,
                enable_model_summary=False,
                enable_progress_bar=False,
                enable_checkpointing=False,
                default_root_dir=folder,
            )
            trainer.fit(self._module(), WorldData(self.config.world, training, self.config.seed))
        between = sorted(after - before for before, after in pairwise(watch.moments[2:]))
        return between[len(between) // 2]


class _Watch(pl.Callback):
    """Notes when each step ends."""

    def __init__(self, now: Callable[[], float]):
        self.now, self.moments = now, list[float]()

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.moments.append(self.now())
