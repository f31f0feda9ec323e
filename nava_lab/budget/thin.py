"""A variant with each kind of layer once: what a deep model costs, counted on a shallow one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace

from nava_lab.blocks.base import Dims
from nava_lab.models.denoiser import Denoiser, on_meta
from nava_lab.models.variant import Size, Stage, Variant
from nava_lab.streams import Interface


@dataclass(frozen=True)
class Thin:
    """A denoiser on the meta device, one block per kind of layer.

    Attributes:
        model: the denoiser.
        layers: for each of its blocks, how many layers of that kind the variant has.
    """

    model: Denoiser
    layers: tuple[int, ...]

    @staticmethod
    def of(variant: Variant, interface: Interface, size: Size | Dims, twice: bool = False) -> Thin:
        """Each kind once, or ``twice`` where there are several: the first of them makes what the others find made."""
        counts: dict[Stage, int] = {}
        for stage in variant.plan():
            kind = replace(stage, layers=1, label="")
            counts[kind] = counts.get(kind, 0) + stage.layers
        if not twice:
            return Thin(on_meta(_with_stages(variant, tuple(counts)), interface, size), tuple(counts.values()))
        pairs = [(kind, times) for kind, count in counts.items() for times in ((1, count - 1) if count > 1 else (1,))]
        stages, layers = zip(*pairs, strict=True)
        return Thin(on_meta(_with_stages(variant, stages), interface, size), layers)

    def times(self, path: str) -> int:
        """How often what lies at a module's or parameter's path counts in the whole model."""
        parts = path.split(".")
        return self.layers[int(parts[1])] if parts[0] == "blocks" and len(parts) > 1 else 1

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return sum(self.times(name) * part.numel() for name, part in self.model.named_parameters())


def _with_stages(variant: Variant, stages: tuple[Stage, ...]) -> Variant:
    """The variant with other stages in place of its own."""
    kind = type(variant)
    thin = type(kind.__name__, (kind,), {"stages": lambda self: list(stages), "plan": lambda self: list(stages)})
    return thin(**{field.name: getattr(variant, field.name) for field in dataclasses.fields(variant) if field.init})
