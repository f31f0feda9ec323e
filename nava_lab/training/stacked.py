"""Several seeds of one network in one training: their parameters stacked along a first axis, their clips along the batch.

Nothing couples seeds: losses are sums over seeds of each one's own, gradients are clipped by each one's own norm, AdamW and
the averaging of weights work number by number. What a seed draws, sees and logs is what its own single run would.

Shape letters: s seeds, b samples of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.data import DataLoader, IterableDataset

from nava_lab.flow.draws import Drawing, Draws
from nava_lab.flow.objective import Network, Objective
from nava_lab.rng import generators
from nava_lab.streams import Batch, References, Stream
from nava_lab.training.data import Indices, WorldData
from nava_lab.training.log import logged
from nava_lab.training.mishaps import not_finite, note_step
from nava_lab.training.module import GenerativeModule, complete, without_decay
from nava_lab.training.settings import Training
from nava_lab.worlds.base import World

Values = Mapping[str, Tensor]


def stacked(networks: Sequence[nn.Module]) -> nn.Module:
    """The first network, each of its parameters now those of all networks along a first axis; names stay what they were.

    Raises:
        ValueError: a buffer differs between them: buffers are shared, for a forward pass changes none.
    """
    parameters, buffers = stack_module_state(list(networks))  # type: ignore[arg-type]
    for name, buffer in buffers.items():
        if not bool((buffer == buffer[:1]).all()):
            raise ValueError(f"networks cannot be stacked: their buffers {name} differ")
    first = networks[0]
    made = {id(part): nn.Parameter(parameters[name], part.requires_grad) for name, part in first.named_parameters()}
    for module in first.modules():
        for name, part in module._parameters.items():
            if part is not None:
                module._parameters[name] = made[id(part)]
    return first


def unstacked(state: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """One network's part of a stacked state, in memory of its own."""
    return {name: part[number].detach().clone() for name, part in state.items()}


def single(network: nn.Module, number: int) -> nn.Module:
    """One of the networks that were stacked, on the stack's own memory: it sees what becomes of the stack.

    It serves where seeds are computed one after the other: a plain call of a plain network costs what a single run's does.
    """
    memo: dict[int, Any] = {id(part): nn.Parameter(part.detach()[number], part.requires_grad) for part in network.parameters()}
    return deepcopy(network, memo)


def outputs(
    network: nn.Module,
    parameters: Mapping[str, Tensor],
    streams: Mapping[str, Stream],
    levels: Mapping[str, Tensor],
    text: Stream,
    cut: Tensor | None,
) -> dict[str, Tensor]:
    """What a network makes of several seeds' samples, each seed's with its own parameters.

    Args:
        network: whose forward pass is called; its own parameters do not matter.
        parameters: ``s ...`` each.
        streams: of ``s * b`` samples, the first seed's first; padded, not packed.
        levels: ``s*b`` or ``s*b n`` per modality.
        text: of as many samples, padded likewise.
        cut: ``s*b``.
    """
    seeds = len(next(iter(parameters.values())))
    distinct = {str(id(level)): level for level in levels.values()}  # equal levels stay one tensor: they are embedded once
    rows: dict[str, dict[str, Tensor]] = {name: _rows(stream) for name, stream in {**streams, "": text}.items()}
    rows["levels"] = distinct
    rows["cut"] = {} if cut is None else {"samples": cut}
    apart = {key: {name: part.unflatten(0, (seeds, -1)) for name, part in group.items()} for key, group in rows.items()}

    def one(own: dict[str, Tensor], given: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
        mine = {name: _with_rows(stream, given[name]) for name, stream in streams.items()}
        at = {name: given["levels"][str(id(level))] for name, level in levels.items()}
        return functional_call(network, own, (mine, at, _with_rows(text, given[""]), given["cut"].get("samples")))

    return {name: part.flatten(0, 1) for name, part in vmap(one)(dict(parameters), apart).items()}


def _rows(stream: Stream) -> dict[str, Tensor]:
    """What a stream holds for each sample."""
    found = {"tokens": stream.tokens, "valid": stream.valid, "span": stream.span}
    if stream.positions.shape[0] > 1:
        found["positions"] = stream.positions
    if stream.references is not None:
        found |= {"features": stream.references.features, "known": stream.references.valid}
    return {name: part for name, part in found.items() if part is not None}


def _with_rows(stream: Stream, rows: Mapping[str, Tensor]) -> Stream:
    own = {name: part for name, part in rows.items() if name not in ("features", "known")}
    references = References(rows["features"], rows["known"]) if "features" in rows else None
    return replace(stream, references=references, **own)  # type: ignore[arg-type]


def clip_each(gradients: Sequence[Tensor], limit: float) -> None:
    """Scale each seed's gradients (``s ...`` each), in place, to a joint norm of at most ``limit``."""
    norms = torch.stack(
        [torch.linalg.vector_norm(part.flatten(1) if part.ndim > 1 else part[:, None], dim=1) for part in gradients]
    )
    scales = (limit / (torch.linalg.vector_norm(norms, dim=0) + 1e-6)).clamp(max=1.0)
    for part in gradients:
        part.mul_(scales.view(-1, *[1] * (part.ndim - 1)))


@dataclass(frozen=True)
class Turn:
    """What one turn of a step makes of some seeds: losses ``s``, means and counts per modality, gradients ``s ...``."""

    loss: Tensor
    means: Values
    counts: Values
    gradients: Sequence[Tensor | None]


class StackedModule(GenerativeModule):
    """Velocity matching of one network for several seeds.

    A seed whose loss is not finite has fallen: it is logged and saved no more, and the others go on.

    Args:
        network: ``stacked``.
        objective: the loss.
        drawing: laws of the training draws.
        training: as of a single run.
        seeds: in the order of the stack.
        together: how many are computed in one call, the others after them: memory and one-off costs against each other.

    Attributes:
        fallen: what is to be said of the seeds that have fallen.
    """

    def __init__(
        self,
        network: nn.Module,
        objective: Objective,
        drawing: Drawing,
        training: Training,
        seeds: Sequence[int],
        together: int,
    ):
        super().__init__(network, objective, drawing, training, seeds[0])
        self.seeds, self.together = tuple(seeds), together
        self.fallen: dict[int, str] = {}
        self._found: dict[str, Tensor] = {}
        self._alone: dict[int, nn.Module] = {}

    @staticmethod
    def mark(seed: int) -> str:
        """What the names of a seed's metrics begin with."""
        return f"s{seed}/"

    def drawn_for_all(self, batch: Batch, purpose: str, drawing: Drawing) -> tuple[Batch, Draws]:
        """All seeds' samples with all modalities, and their draws, each by its own seed and clip."""
        batch = complete(batch, self.network.specs)  # type: ignore[arg-type]
        indices = batch.index.unflatten(0, (len(self.seeds), -1)).tolist()
        own = [part for seed, index in zip(self.seeds, indices, strict=True) for part in generators(purpose, seed, index)]
        return batch, drawing(batch.streams, own)

    def turns(self, batch: Batch, draws: Draws) -> Iterator[tuple[slice, Batch, Draws]]:
        """The seeds that are computed together, with their samples."""
        size = len(batch) // len(self.seeds)
        for start in range(0, len(self.seeds), self.together):
            seeds = slice(start, min(start + self.together, len(self.seeds)))
            rows = slice(seeds.start * size, seeds.stop * size)
            yield seeds, batch.rows(rows), draws.rows(rows)

    def network_of(self, seeds: slice, parameters: Mapping[str, Tensor]) -> Network:
        """Some seeds' network: of one, plainly; of several, all in one call with these of the stack's parameters."""
        if seeds.stop - seeds.start > 1:
            return partial(outputs, self.network, parameters)
        return self.alone(seeds.start)

    def alone(self, number: int) -> nn.Module:
        """One seed's network; made anew where the stack has moved to other memory."""
        first = next(self.network.parameters())
        if number not in self._alone or next(self._alone[number].parameters()).data_ptr() != first[number].data_ptr():
            self._alone[number] = single(self.network, number)
        return self._alone[number]

    def each(self, network: Network, seeds: int, batch: Batch, draws: Draws) -> tuple[Tensor, Values, Values]:
        """Of some seeds: the loss of each (``s``), and per modality its mean and how many samples have some."""
        losses = self.objective.per_sample(network, batch, draws)
        apart = {name: part.unflatten(0, (seeds, -1)) for name, part in losses.items()}
        some = self.objective.counted_samples(batch, draws)
        counts = {name: part.unflatten(0, (seeds, -1)).sum(1).to(apart[name].dtype) for name, part in some.items()}
        return vmap(self.objective.total)(apart, counts), vmap(self.objective.means)(apart, counts), counts

    def training_step(self, batch: Batch, step: int) -> Tensor:
        """The mean of the seeds' losses. Gradients are taken here: one turn's activations are gone when the next one comes."""
        batch, draws = self.drawn_for_all(batch, "train", self.drawing)
        turns = [self._turn(*turn) for turn in self.turns(batch, draws)]
        names = [name for name, part in self.network.named_parameters() if part.requires_grad]
        self._found = {
            name: found
            for name, each in zip(names, zip(*(turn.gradients for turn in turns), strict=True), strict=True)
            if (found := _in_one(each, [len(turn.loss) for turn in turns])) is not None
        }
        loss = torch.cat([turn.loss for turn in turns])
        self._unread.append((self.global_step, loss))
        if logged(self.global_step + 1):
            self.read_losses()
            self._log_training(loss, turns, batch, draws)
        return loss.mean()

    def _turn(self, seeds: slice, batch: Batch, draws: Draws) -> Turn:
        """One turn's losses and gradients."""
        count = seeds.stop - seeds.start
        if count > 1:
            own = {
                name: part.detach()[seeds].requires_grad_(part.requires_grad) for name, part in self.network.named_parameters()
            }
        else:
            own = dict(self.alone(seeds.start).named_parameters())
        loss, means, counts = self.each(self.network_of(seeds, own), count, batch, draws)
        learnt = [part for part in own.values() if part.requires_grad]
        found = torch.autograd.grad(loss.sum(), learnt, allow_unused=True)
        gradients = found if count > 1 else [None if part is None else part.unsqueeze(0) for part in found]
        return Turn(loss.detach(), {name: mean.detach() for name, mean in means.items()}, counts, gradients)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Hand over the gradients that the step has taken."""
        for name, part in self.network.named_parameters():
            part.grad = self._found.pop(name, None)

    def note_broken_weights(self) -> None:
        """Let the seeds fall whose losses or weights are no numbers any more."""
        self.read_losses()
        for name, part in self.network.named_parameters():
            fine = part.detach().isfinite().flatten(1).all(1) if part.ndim > 1 else part.detach().isfinite()
            for seed, whole in zip(self.seeds, fine.tolist(), strict=True):
                if not whole:
                    self.fallen.setdefault(seed, f"weights ({name}) are infinite or not a number at step {self.global_step}")
        self._end_where_all_fell(self.global_step)

    def _judge(self, steps: Sequence[int], losses: Sequence[Any]) -> None:
        """Let the seeds fall that have a loss (``losses``: of each step those of all seeds) which is none."""
        for step, each in zip(steps, losses, strict=True):
            for seed, loss in zip(self.seeds, each, strict=True):
                if seed not in self.fallen and (message := not_finite(loss, step)):
                    self.fallen[seed] = message
            self._end_where_all_fell(step)
        alive = [loss for seed, loss in zip(self.seeds, losses[-1], strict=True) if seed not in self.fallen]
        self.loss = sum(alive) / len(alive)

    def _end_where_all_fell(self, step: int) -> None:
        if len(self.fallen) == len(self.seeds):
            error = FloatingPointError(self.fallen[self.seeds[0]])
            note_step(error, step)
            raise error

    def _log_training(self, losses: Tensor, turns: Sequence[Turn], batch: Batch, draws: Draws) -> None:
        means = {key: torch.cat([turn.means[key] for turn in turns]) for key in turns[0].means}
        counts = {key: torch.cat([turn.counts[key] for turn in turns]) for key in turns[0].counts}
        size, values = len(batch) // len(self.seeds), dict[str, Tensor]()
        for number, seed in enumerate(self.seeds):
            if seed in self.fallen:
                continue
            found = {"loss": losses[number]}
            found |= {f"loss_{key}": part[number] for key, part in means.items() if key not in counts or counts[key][number] > 0}
            rates = draws.rows(slice(number * size, (number + 1) * size)).rates()
            found |= {f"rate_{key}": rate for key, rate in rates.items()}
            values |= {f"{self.mark(seed)}train/{key}": value for key, value in found.items()}
        self._log_anew(values, batch_size=size)

    def validation_step(self, batch: Batch, step: int) -> None:
        batch, draws = self.drawn_for_all(batch, "validation", self.validation_drawing)
        for seeds, rows, drawn in self.turns(batch, draws):
            own = {name: part[seeds] for name, part in self.network.named_parameters()}
            loss, means, _ = self.each(self.network_of(seeds, own), seeds.stop - seeds.start, rows, drawn)
            for number, seed in enumerate(self.seeds[seeds]):
                found = {f"loss_{key}": mean[number] for key, mean in means.items()} | {"loss": loss[number]}
                named = {f"{self.mark(seed)}validation/{key}": value for key, value in found.items()}
                self.log_dict(named, batch_size=len(batch) // len(self.seeds))

    def spared(self, name: str, parameter: Tensor) -> bool:
        return without_decay(name, parameter[0])

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """By the norm of each seed's own gradient."""
        found = [part.grad for part in self.network.parameters() if part.grad is not None]
        if gradient_clip_val and found:
            clip_each(found, gradient_clip_val)


def _in_one(found: Sequence[Tensor | None], sizes: Sequence[int]) -> Tensor | None:
    """Turns' gradients of a parameter as one, 0 for a turn in which it had no part; None where it had none in any.

    It lies in memory as the parameter does, for a fused optimiser walks both alike: ``backward`` sees to that, ``grad`` does not.
    """
    like = next((part for part in found if part is not None), None)
    if like is None or len(found) == 1:
        return like if like is None else like.contiguous()
    return torch.cat(
        [like.new_zeros(size, *like.shape[1:]) if part is None else part for part, size in zip(found, sizes, strict=True)]
    )


class SideBySide(IterableDataset):
    """Rows of several seeds' clip numbers as one row, the first seed's first."""

    def __init__(self, each: Sequence[Indices]):
        self.each = each

    def __iter__(self) -> Iterator[Tensor]:
        for rows in zip(*self.each, strict=True):
            yield torch.cat(rows)


class StackedData(WorldData):
    """The clips of several seeds' trainings, each seed's as in its single run."""

    def __init__(self, world: World, training: Training, seeds: Sequence[int]):
        super().__init__(world, training, seeds[0])
        self.seeds = tuple(seeds)

    def train_dataloader(self) -> DataLoader:
        return self._joined([self.training_rows(seed) for seed in self.seeds])

    def val_dataloader(self) -> DataLoader:
        return self._joined([self.validation_rows()] * len(self.seeds))

    @staticmethod
    def _joined(rows: Sequence[Indices]) -> DataLoader:
        return DataLoader(SideBySide(rows), batch_size=None)
