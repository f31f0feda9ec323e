"""Shared by all tests: shape annotations are checked, threads kept to one per worker, tiny models at hand."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from jaxtyping import install_import_hook

# The rules of masks and the facts they read are left out: flex attention traces them, and cannot trace the checker.
ATTENTION = tuple(f"nava_lab.attention.{name}" for name in ("attend", "backends", "picture", "projections", "visible"))
HOOKED = ("nava_lab.layers", *ATTENTION, "nava_lab.flow", "nava_lab.worlds", "nava_lab.models", "nava_lab.streams")
install_import_hook(HOOKED, "beartype.beartype")

import pytest
import torch
from hypothesis import HealthCheck, settings

from nava_lab.models.denoiser import Denoiser
from nava_lab.models.variant import Size
from nava_lab.streams import Interface, ModalitySpec, Stream, TextSpec, time_positions

torch.set_num_threads(1)
settings.register_profile("fixed", deadline=None, derandomize=True, max_examples=20, suppress_health_check=list(HealthCheck))
settings.register_profile("long", deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
settings.load_profile(os.environ.get("NAVA_PROFILE", "fixed"))

INTERFACE = Interface({"video": ModalitySpec(6, 5, 0.08), "audio": ModalitySpec(4, 7, 0.05)}, TextSpec(3, 9))


@pytest.fixture
def interface() -> Interface:
    return INTERFACE


class Inputs:
    """A small batch for INTERFACE."""

    def __init__(self, batch: int = 3, seed: int = 0, padded: bool = False):
        generator = torch.Generator().manual_seed(seed)
        self.streams = {}
        for name, spec in INTERFACE.modalities.items():
            values = torch.randn(batch, spec.tokens, spec.channels, generator=generator)
            valid = None
            if padded:
                lengths = torch.randint(1, spec.tokens + 1, (batch,), generator=generator)
                valid = torch.arange(spec.tokens) < lengths[:, None]
            self.streams[name] = Stream(values, time_positions(spec.tokens, spec.seconds), valid)
        level = torch.rand(batch, generator=generator)
        self.levels = dict.fromkeys(self.streams, level)
        ids = torch.randint(2, 9, (batch, 3), generator=generator)
        ids[:, 2:] = 0
        from nava_lab.conditioning.text import text_stream

        self.text = text_stream(ids)

    def rows(self, select):
        return (
            {name: stream.rows(select) for name, stream in self.streams.items()},
            {name: level[select] for name, level in self.levels.items()},
            self.text.rows(select),
        )


def fitting(variant, size: Size) -> Size:
    """The size, widened to where the variant's heads divide: groups of five queries need a multiple of ten."""
    step = 2 * variant.layers.query_group
    return Size(-(-size.width // step) * step, size.hidden) if step > 2 else size


def lively(variant, size=None, seed: int = 0, **options) -> Denoiser:
    """A small denoiser whose zero-initialised parts are randomised, so that every path carries something."""
    torch.manual_seed(seed)
    model = Denoiser(variant, INTERFACE, fitting(variant, size or Size(24, 40)), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model
