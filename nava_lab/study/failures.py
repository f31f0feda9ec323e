"""What a run can stop of by itself, each in one message: what happened, where the run's state is, what to change."""

from __future__ import annotations

from pathlib import Path

import torch

from nava_lab.config import Config
from nava_lab.study import record
from nava_lab.training.mishaps import chain, step_of
from nava_lab.training.saved import FULL, numbered

SPEAKING = (ValueError, ArithmeticError, OSError, RuntimeError, MemoryError)  # errors whose message says it all


class RunFailed(RuntimeError):
    """A run stopped of something that its user can act on; ``kind`` names the error behind it."""

    def __init__(self, message: str, kind: str):
        super().__init__(message)
        self.kind = kind


def in_words(error: BaseException) -> str:
    """An error in one line; what a part under development raises (a KeyError, say) needs its kind to be understood."""
    text = " ".join(str(error).split())
    return text if text and isinstance(error, SPEAKING) else f"{type(error).__name__}: {text}".rstrip(": ")


def explained(error: BaseException, folder: Path, config: Config, together: int = 0) -> RunFailed | None:
    """The error as one message; None for what only a traceback explains.

    Args:
        error: that ended the run.
        folder: of the run.
        config: of the run.
        together: how many seeds were computed at once, where several were trained in one process; 0 for a run of its own.
    """
    step = step_of(error)
    met = (one for one in chain(error) if not isinstance(one, RunFailed))  # of another seed, in its words
    found = next((text for one in met for text in (_explained(one, folder, config, together, step),) if text), None)
    return None if found is None else RunFailed(f"{folder}: {found}", type(error).__name__)


def _explained(error: BaseException, folder: Path, config: Config, together: int, step: int | None) -> str:
    what, where = " ".join(str(error).split()), state(folder, step)
    if isinstance(error, FloatingPointError):
        lr, warmup = config.training.lr, config.training.warmup
        return (
            f"{what}; {where}, and the same command would meet it again: lower training.lr={lr:g} or raise "
            f"training.warmup={warmup:g}, which begins a run of its own"
        )
    if is_disk_full(error):
        return f"the disk is full ({what}); {where}: free some space, and the same command continues it"
    if is_out_of_memory(error):
        return f"out of memory ({_shortened(what)}); {where}. {_smaller(folder, config, together)}"
    if is_lost_peer(error):
        return f"another process of this run ended, see what it said; {where}, and the same command continues it"
    return ""


def is_disk_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and (error.errno in FULL or "No space left" in str(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Of Python, of a GPU, or of torch's allocator on the CPU, which raises a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def is_lost_peer(error: BaseException) -> bool:
    """Of a distributed training whose other process is gone: what gloo, or NCCL, raises in those that are left."""
    if isinstance(error, torch.distributed.DistBackendError | torch.distributed.DistNetworkError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error) and "Connection" in str(error)


def state(folder: Path, step: int | None = None) -> str:
    """Where a run's state is, and how many steps are lost, as part of a sentence.

    Args:
        folder: of the run.
        step: how far it had come, where that is known.
    """
    if (folder / record.NAME).exists():
        return "the run itself is finished"
    if (folder / "model.safetensors").exists():
        return "its training is finished and safe in model.safetensors"
    found = numbered(folder / "checkpoints")
    if not found:
        return "nothing had been saved yet" + (f", so {_lost(step)}" if step else "")
    safe = int(found[0].stem)
    return f"its state is safe at step {safe}" + (f" ({_lost(step - safe)})" if step and step > safe else "")


def left_at(folder: Path, step: int | None, together: int = 0) -> str:
    """Where a run is that somebody ended, and what the same command does with it.

    Args:
        folder: of the run.
        step: how far it had come, where that is known.
        together: how many seeds were computed at once, where several were trained in one process.
    """
    done = (folder / record.NAME).exists()
    begun = (folder / "model.safetensors").exists() or bool(numbered(folder / "checkpoints"))
    next_time = "" if done else f", and the same command {'continues it' if begun else 'starts it anew'}"
    return f"{folder}: {state(folder, step)}{next_time}" + (", as with the seeds beside it" if together else "")


def _lost(steps: int) -> str:
    return "1 step is lost" if steps == 1 else f"{steps} steps are lost"


def _smaller(folder: Path, config: Config, together: int) -> str:
    """How the same run, or the same seeds of one process, need less memory."""
    if (folder / "model.safetensors").exists():
        size = max(1, config.evaluation.batch_size // 2)
        return (
            f"Score it in smaller batches, which changes no number: nava train --continue {folder} evaluation.batch_size={size}"
        )
    if together > 1:
        half = together // 2
        last = ", and if that is not enough seeds_together=1" if half > 1 else ""
        fewer = f"seeds_together={half} continues them{last} (of a study: --together {half} --retry-failed)"
        return f"Compute fewer seeds at once, {together} were: the same command with {fewer}"
    machine = config.trainer
    wanted = [f"trainer.accumulate={2 * machine.accumulate}"]
    wanted += [] if machine.checkpoint_activations else ["trainer.checkpoint_activations=true"]
    each = "each seed alone" if together else "it"  # one seed's activations at a time is the least that a stack needs
    return f"Continue {each} with less at a time and the same gradients: nava train --continue {folder} {' '.join(wanted)}"


def _shortened(text: str, most: int = 120) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
