"""What a config holds: one dataclass per group. Variants, worlds, solvers and the like bring their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class ConfigError(ValueError):
    """A config that cannot be meant; the message names the key and the remedy."""


@dataclass
class Flow:
    """How noise is mixed in and what is learnt; see ``nava_lab.flow``."""

    prediction: str = "x0"
    coupling: str = "shared"
    text_dropout: float = 0.1
    modality_dropout: float = 0.0
    modality_given: float = 0.0
    continuation: float = 0.0
    timbre_dropout: float = 0.0
    first_step: dict[str, float] = field(default_factory=dict)
    clean_loss: bool = False
    weights: dict[str, float] = field(default_factory=dict)
    shifts: dict[str, float] = field(default_factory=dict)
    levels: Any = None
    weighting: Any = None


@dataclass
class Evaluation:
    """How a trained model is sampled and scored; ``split``: on the test clips, or on the validation clips to tune by."""

    clips: int = 256
    loss_clips: int = 1024
    batch_size: int = 64
    steps: int = 25
    shift: float = 1.0
    shifts: dict[str, float] = field(default_factory=dict)
    schedules: dict[str, Any] = field(default_factory=dict)
    given: str = ""
    split: str = "test"
    branch_rows: int = 256
    previews: int = 4
    solver: Any = None
    schedule: Any = None
    guidance: Any = None


@dataclass
class Attention:
    """Reach and backend of attention.

    ``cut``: who is cut off where attention is cut, "all" modalities or one by name. ``packed``: compute on real tokens
    alone, packed into one row, instead of on padded ones. ``mask``: a registered rule for every layer.
    """

    window_s: float = float("inf")
    backend: str = "auto"
    cut: str = "all"
    packed: bool = False
    mask: str = "none"


@dataclass
class Conditioning:
    """How what a model is told reaches it.

    ``timbre``: reference timbres in "context" (each in the place of the word that marks its span), "added" to those words, one
    "global" mean added to every token, or "none". ``timbre_in_span``: a timbre among the words is seen from its own span alone.
    """

    timbre: str = "context"
    timbre_in_span: bool = False


@dataclass
class WarmStart:
    """A published checkpoint to start from: ``warm_start=PATH`` for short.

    ``path``: a safetensors file, the index of its shards, or their folder. ``coverage``: least share of its parameters that
    must find a place. ``ends``: also embedders, heads and the text's encoder, which must agree in channels and features.
    ``differ``: what the model may compute otherwise than the checkpoint, such as [clock,heads]; the refusal names it.
    ``digest``: what it holds, settled when the config is read, so that a run's identity knows the weights themselves.
    """

    path: str = ""
    coverage: float = 0.9
    ends: bool = True
    differ: list[str] = field(default_factory=list)
    digest: str = ""


@dataclass
class Machine:
    """What a run trains on.

    "auto" is settled when the config is read, so that a run's identity says what it ran on: CUDA where there is one (worlds
    are rendered in float64, which Apple's GPUs lack), all of its devices, bf16-mixed there and fp32 on CPU.

    ``devices``: of each machine (on a CPU: processes); ``nodes``: machines; the batch is divided among all. ``strategy``: "ddp",
    each holds all weights; "fsdp", each a shard of them. ``compile``: every layer. ``accumulate``: in how many pieces a batch is
    computed, with the whole one's gradients. ``checkpoint_activations``: remember layers' inputs alone and compute them again.
    """

    accelerator: str = "auto"
    devices: Any = 1
    nodes: int = 1
    precision: str = "auto"
    strategy: str = "auto"
    compile: bool = False
    accumulate: int = 1
    checkpoint_activations: bool = False


@dataclass
class Logger:
    """Where metrics go besides ``metrics.jsonl``; ``project`` is W&B's, or MLflow's experiment, and empty for the others."""

    kind: str = "tensorboard"
    project: str = ""


@dataclass
class Output:
    """Where and how a run is shown; the one group (with logger) that is no part of a run's identity."""

    root: str = "runs"
    progress: bool = True


@dataclass(frozen=True)
class Config:
    """A whole run, typed and checked."""

    variant: Any
    world: Any
    budget: Any
    training: Any
    flow: Flow
    evaluation: Evaluation
    attention: Attention
    conditioning: Conditioning
    warm_start: WarmStart
    trainer: Machine
    logger: Logger
    output: Output
    seed: int
    resolved: Mapping[str, Any]  # plain values, as written to config.yaml
