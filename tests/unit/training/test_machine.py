"""What a training runs on: who starts its processes, and layers that are computed again."""

import dataclasses

import pytest
import torch

from nava_lab.registry import variants
from nava_lab.streams import Batch
from nava_lab.training.machine import Devices, check_compiler, meet, prepare_layers, surroundings
from nava_lab.training.module import complete
from tests.conftest import INTERFACE, Inputs, lively


def remembered(model):
    """Outputs, gradients, and the values that autograd keeps for the backward pass."""
    inputs, sizes = Inputs(4), {}

    def keep(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(inputs.streams, inputs.levels, inputs.text)
    sum(part.square().sum() for part in out.values()).backward()
    return out, {name: part.grad for name, part in model.named_parameters()}, sum(sizes.values())


@pytest.mark.parametrize("name", variants.names())
def test_layers_computed_again_give_the_same_gradients_from_less_memory(name):
    plain, again = (lively(variants.get(name)(depth=4)) for _ in range(2))
    prepare_layers(again, compiled=False, checkpointed=True)
    assert list(again.state_dict()) == list(plain.state_dict())
    (out, gradients, values), (others, other_gradients, fewer) = remembered(plain), remembered(again)
    assert all(torch.equal(out[key], others[key]) for key in out)
    for key, gradient in gradients.items():
        assert (gradient is None) == (other_gradients[key] is None)
        assert gradient is None or torch.equal(gradient, other_gradients[key]), key
    assert fewer < 0.7 * values


def test_a_modality_that_is_not_there_is_all_padding():
    inputs = Inputs(3)
    batch = Batch({"video": inputs.streams["video"]}, inputs.text, torch.arange(3))
    filled = complete(batch, INTERFACE.modalities)
    assert list(filled.streams) == list(INTERFACE.modalities)
    assert filled.streams["video"] is batch.streams["video"]
    audio = filled.streams["audio"]
    assert audio.tokens.shape == inputs.streams["audio"].tokens.shape
    assert not audio.valid.any()
    model = lively(variants.get("unified")(depth=2))
    alone = model(batch.streams, {"video": inputs.levels["video"]}, inputs.text)
    both = model(filled.streams, inputs.levels, inputs.text)
    torch.testing.assert_close(both["video"], alone["video"])
    whole = dataclasses.replace(batch, streams=inputs.streams)
    assert complete(whole, INTERFACE.modalities) is whole


def test_compiling_for_a_cpu_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "g++")
    check_compiler("cuda")
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler"):
        check_compiler("cpu")


def test_what_lightning_starts_in_a_job_of_one_task_does_not_meet_as_what_slurm_starts(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("SLURM_JOB_NAME", raising=False)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    for rank in ("0", "1"):  # the first, once it has started others, and those
        monkeypatch.setenv("LOCAL_RANK", rank)
        meet(Devices("cpu", 2, strategy="ddp"))
        assert not torch.distributed.is_initialized()


def test_who_starts_the_processes_is_seen_and_slurm_keeps_no_checkpoints_of_its_own(monkeypatch):
    for key in ("SLURM_NTASKS", "SLURM_JOB_NAME", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(key, raising=False)
    assert surroundings() is None
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert not surroundings().creates_processes_externally  # a job of one task starts its own
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE", raising=False)
    with pytest.raises(ValueError, match="--ntasks-per-node=2"):
        surroundings()
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "2")
    assert surroundings().creates_processes_externally
    assert surroundings().auto_requeue is False
    with pytest.raises(ValueError, match=r"2 processes were started for trainer.devices=4"):
        meet(Devices("cpu", 4, strategy="ddp"))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    assert type(surroundings()).__name__ == "TorchElasticEnvironment"
