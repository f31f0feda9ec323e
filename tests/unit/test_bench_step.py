"""``nava bench step``: the floor counted by hand, the table's identities, what is refused. Its ratios belong to a quiet machine."""

import dataclasses
import json
import re
import time

import pytest
import torch
import torch.nn.functional as F

from nava_lab.bench import BENCHES, cards, products, scaling, step, subject
from nava_lab.bench.products import Product, Spec, alone, flops, recorded
from nava_lab.bench.scaling import slope
from nava_lab.bench.step import main, missed, not_judged
from nava_lab.bench.subject import Subject
from nava_lab.config import ConfigError, load

SMALL = [
    "budget.width=16",
    "budget.hidden=16",
    "budget.parameters=null",
    "variant.depth=1",
    "training.batch_size=2",
    "trainer=cpu",
]


def test_products_counted_by_hand():
    """Two linear layers of 3 -> 5 -> 4 on 7 rows and one attention: each layer is one product forward, and backward one for
    its weights and, but for the first layer, one for its input."""
    x, first, second = torch.randn(7, 3), torch.nn.Linear(3, 5), torch.nn.Linear(5, 4)
    q = torch.randn(1, 2, 6, 8, requires_grad=True)
    with recorded() as found:
        out = second(torch.relu(first(x)))
        attended = F.scaled_dot_product_attention(q, q, q)
        (out.sum() + attended.sum()).backward()
    kinds = {kind: sum(count for one, count in found.items() if one.kind == kind) for kind in {one.kind for one in found}}
    assert kinds == {"mm": 5, "attention": 1, "attention_backward": 1}
    linear = 2 * 7 * (3 * 5 + 5 * 4)
    logits = 2 * 2 * 6 * 6 * 8  # of two heads, one product
    assert flops(found) == linear + (linear + 2 * 7 * 5 * 4) + 2 * logits + 5 * logits
    alone(found)()


def test_a_product_is_made_as_it_was_called():
    layout = Spec.of(torch.randn(4, 6)[:, ::2].mT)
    assert layout.shape == (3, 4)
    assert layout.made().stride() == layout.stride == (2, 6)
    assert Product("mm", (layout, Spec.of(torch.randn(4, 5)))).call()().shape == (3, 5)
    with recorded() as found:
        torch.nn.Conv1d(2, 3, 3, bias=False)(torch.randn(1, 2, 8)).sum().backward()
    assert {one.kind for one in found} == {"convolution", "convolution_backward"}
    alone(found)()


def test_a_row_adds_up(capsys):
    code = main(["variant=unified,dual_tower", *SMALL, "--rounds=1", "--json"])
    made = json.loads(capsys.readouterr().out)
    assert [row["variant"] for row in made["rows"]] == ["unified", "dual_tower"]
    for row in made["rows"]:
        assert row["step_ms"] == pytest.approx(sum(row[f"{name}_ms"] for name in ("data", "forward", "backward", "optimiser")))
        assert row["to_floor"] == pytest.approx(row["step_ms"] / row["floor_ms"])
        assert row["samples_per_s"] == pytest.approx(2000 / row["step_ms"])
        for peer in row["peers"].values():
            assert peer["ratio"] == pytest.approx(peer["ours_ms"] / peer["theirs_ms"])
        assert set(row["peers"]) == {"Wan", "LTX-2"}
        # No gradient goes into the tokens themselves: of the embedders' three products one is never made.
        assert 0.85 < row["floor_flops"] / row["budget_flops"] < 1.02
        assert row["peak_bytes"] > 4 * 4 * row["parameters"]  # weights, their average, two moments
        assert row["mfu"] is row["kernels_ms"] is row["to_kernels"] is None
    assert [row["target"] for row in made["rows"]] == [1.6, 1.9]
    assert made["missed"] == missed(made["rows"])
    assert made["not_judged"] == []
    assert code == int(bool(made["missed"]))


def test_what_misses_its_target_is_named(monkeypatch, capsys):
    row = {"variant": "a", "to_floor": 1.7, "target": 1.6, "peers": {"Wan": {"ratio": 0.96}, "LTX-2": {"ratio": 0.95}}}
    assert missed([row]) == ["a 1.70 x floor (at most 1.6)", "a 0.96 x Wan (at most 0.95)"]
    assert missed([{**row, "to_floor": 1.6, "peers": {}}]) == []


def test_profiles_are_written(tmp_path):
    assert main(["variant=unified", *SMALL, f"--profile={tmp_path / 'made'}"]) == 0
    assert json.loads((tmp_path / "made" / "unified.json").read_text())["traceEvents"]
    assert "aten::addmm" in (tmp_path / "made" / "unified.txt").read_text()


def test_scaling_fits_a_slope(capsys, monkeypatch):
    monkeypatch.setattr(scaling.os, "sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr(scaling.devices, "measure", lambda settings, strategy, count, steps: {"step_ms": 3.0 * count})
    assert slope((1, 2, 4), (3.0, 6.0, 12.0)) == pytest.approx(1)
    assert main(["variant=unified", "world=gaussian", *SMALL, "--scaling", "--rounds=1", "--json"]) == 1
    made = json.loads(capsys.readouterr().out)
    series = {line["axis"]: line for line in made["scaling"]}
    assert "unified over processes: 1.00 (at most 0.15)" in made["missed"]
    assert set(series) == {"tokens", "depth", "width", "batch", "seeds", "processes"}
    assert [point["setting"] for point in series["seeds"]["points"]] == ["seeds=1", "seeds=2", "seeds=4"]
    assert [point["step_ms"] for point in series["processes"]["points"]] == pytest.approx([3, 6])
    assert series["processes"]["exponent"] == pytest.approx(1)
    assert [point["setting"] for point in series["depth"]["points"]] == [f"variant.depth={depth}" for depth in (2, 4, 8)]
    assert [point["setting"] for point in series["width"]["points"]] == [f"budget.width={width}" for width in (16, 32, 64)]
    assert series["depth"]["exponent"] == pytest.approx(slope((1, 2, 4), [p["step_ms"] for p in series["depth"]["points"]]))


def test_what_grows_faster_than_it_should_is_named_and_no_success(monkeypatch, capsys):
    """Also in JSON, which says on what it was measured."""
    line = {"variant": "a", "axis": "depth", "points": [{"step_ms": 1.0}], "exponent": 1.2, "most": 1.05}
    monkeypatch.setattr(step, "device_of", lambda config: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    for exponent, told in ((1.2, ["a over depth: 1.20 (at most 1.05)"]), (1.05, [])):
        monkeypatch.setattr(step, "scaled", lambda *_, exponent=exponent: [{**line, "exponent": exponent}])
        assert main(["variant=unified", *SMALL, "--scaling", "--json"]) == len(told)
        made = json.loads(capsys.readouterr().out)
        assert (made["missed"], made["device"], made["card"]) == (told, "cuda", "NVIDIA H200")
        assert main(["variant=unified", *SMALL, "--scaling"]) == len(told)
        assert f"faster than it should: {told[0] if told else 'nothing'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "asked", ["trainer.accumulate=2", "trainer.devices=2", "trainer.strategy=ddp", "trainer.precision=16-mixed"]
)
def test_what_this_step_leaves_out_is_refused(asked):
    key, value = asked.removeprefix("trainer.").split("=")
    config = load(["variant=unified", *SMALL])
    machine = dataclasses.replace(config.trainer, **{key: int(value) if value.isdigit() else value})
    with pytest.raises(ConfigError, match=f"leave out {asked}"):
        Subject(dataclasses.replace(config, trainer=machine))


def test_the_average_is_timed_where_there_is_one():
    plain, averaged = (Subject(load(["variant=unified", *SMALL, f"training.ema_half_life={share}"])) for share in (0, 0.02))
    assert not plain.average
    assert len(averaged.average) == len(list(averaged.model.parameters()))
    plain.step()


def test_layers_that_are_computed_again_show_in_the_products(capsys):
    wide = ["variant=unified", "budget.parameters=null", "budget.width=64", "budget.hidden=256", "variant.depth=4", *SMALL[4:]]
    plain = Subject(load(wide))
    plain.step()
    least = flops(plain.products()) / (plain.batch_size * plain.built.solution.cost.flops_per_sample)
    main([*wide, "trainer.checkpoint_activations=true", "--rounds=1", "--no-peers"])
    told = capsys.readouterr().out
    head, row = (next(line for line in told.splitlines() if word in line) for word in ("products", " unified"))
    place = [part.strip() for part in re.split("[┃│]", head)].index("products")
    assert float(re.split("[┃│]", row)[place]) > 1.1 * least  # a third of what layers multiply comes again


def test_memory_on_a_gpu_is_the_subjects_own(monkeypatch):
    """What others hold there is taken off what the device has given out."""
    subject = Subject(load(["variant=unified", *SMALL]))
    subject.step()
    monkeypatch.setattr(subject, "device", torch.device("cuda"))
    monkeypatch.setattr(subject, "step", lambda: {})
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10**9)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 10**9 + 77)
    held = sum(part.numel() * part.element_size() for part in subject.model.parameters())
    assert 4 * held + 77 <= subject.peak() <= 4.1 * held + 77  # weights, their average, two moments


def test_the_peak_of_a_card_is_known_by_its_whole_name():
    for name, peak in (("NVIDIA L40S", 362e12), ("NVIDIA L40", 181e12), ("NVIDIA H100 PCIe", 756e12)):
        assert cards.used(name, 0.3 * peak) == pytest.approx(0.3)
    assert cards.used("NVIDIA H1000", 1e12) is cards.used("cpu", 1e12) is None
    assert cards.card(torch.device("cpu")) == "cpu"


class Event:
    def __init__(self, kind, nanoseconds):
        self.kind, self.nanoseconds = kind, nanoseconds

    def activity_type(self):
        return self.kind

    def duration_ns(self):
        return self.nanoseconds


def test_only_kernels_count_as_kernels():
    events = [Event("kernel", 2000), Event("cpu_op", 9000), Event("gpu_user_annotation", 9000), Event("gpu_memcpy", 500)]
    assert cards.kernel_seconds([*events, Event("kernel", 1000)]) == pytest.approx(3e-6)
    with torch.profiler.profile() as watched:
        torch.ones(3) + 1
    found = watched.profiler.kineto_results.events()
    assert found
    assert cards.kernel_seconds(found) == 0


def test_kernels_are_those_of_one_step(monkeypatch):
    """Of steps that nobody waits for in their midst."""
    found = Subject(load(["variant=unified", *SMALL]))
    waits = []
    monkeypatch.setattr(found, "now", lambda: waits.append(found.steps) or 0.0)
    monkeypatch.setattr(subject, "kernel_seconds", lambda events: 6e-3)
    assert found.kernels(steps=2) == pytest.approx(3e-3)
    assert waits == [2]


def on_card(parameters, to_kernels, mfu, precision="bf16-mixed", compiled=True):
    row = {"variant": "a", "to_floor": 9.0, "target": None, "peers": {"Wan": {"ratio": 9.0}}}
    return {**row, "parameters": parameters, "to_kernels": to_kernels, "mfu": mfu, "precision": precision, "compiled": compiled}


def test_a_gpu_has_targets_of_its_own():
    assert missed([on_card(10**6, 2.1, 0.01)]) == ["a 2.10 x its kernels (at most 2.0)"]
    assert missed([on_card(10**9, 2.1, 0.49)]) == ["a 0.49 of the card's peak (at least 0.5)"]
    fine = [on_card(10**6, 1.9, 0.01), on_card(10**9, 1.0, 0.5), on_card(10**6, 1.9, None), on_card(10**9, None, 0.5)]
    assert missed(fine) == not_judged(fine) == []


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (on_card(10**6, None, 0.01), "its kernels' time is not known"),
        (on_card(10**9, 1.0, None), "its card's peak is not known"),
        (on_card(10**8, 9.0, 0.01), "of 100 M weights; targets are for up to 10 M and from 500 M on"),
        (on_card(10**6, 9.0, 0.01, "32-true"), "in 32-true, compiled; targets are for bf16, compiled"),
        (on_card(10**9, 9.0, 0.01, compiled=False), "in bf16-mixed, eager; targets are for bf16, compiled"),
    ],
)
def test_what_a_gpu_is_not_judged_by_is_no_success(row, why):
    assert missed([row]) == []
    assert not_judged([row]) == [f"a ({why})"]
    assert not_judged([{**row, "target": 1.6}]) == []  # a CPU is always judged


def test_a_step_on_a_gpu_is_timed_whole_and_its_parts_apart(monkeypatch, capsys):
    """A CPU in a GPU's place: what is slow to look at inside is not looked at while the whole is timed."""
    monkeypatch.setattr(Subject, "on_gpu", property(lambda self: True))
    monkeypatch.setattr(Subject, "now", lambda self: time.perf_counter())
    monkeypatch.setattr(Subject, "peak", lambda self: 1)
    monkeypatch.setattr(Subject, "kernels", lambda self: 1e-4)
    looked = Subject.step

    def slow_to_look_at(self, now=None):
        if now is None:
            time.sleep(0.6)
        return looked(self, now)

    monkeypatch.setattr(Subject, "step", slow_to_look_at)
    made = Subject(load(["variant=unified", *SMALL]))
    (row,) = step.measure([made], 1, False, lambda message: None)
    assert row["target"] is None
    assert row["kernels_ms"] == pytest.approx(0.1)
    assert row["to_kernels"] == pytest.approx(row["step_ms"] / 0.1)
    assert row["step_ms"] < 600
    assert all(row[f"{phase}_ms"] > 0 for phase in subject.PHASES)
    step.show([row], {"card": "NVIDIA H1000", "threads": 1})
    told = capsys.readouterr().out
    assert "a training step on NVIDIA H1000" in told
    assert "x kernels" in told
    assert "the bf16 peak of NVIDIA H1000 is not known" in told
    assert "not judged: unified (in 32-true, eager; targets are for bf16, compiled)" in told
    assert "missed" not in told
    step.show([row, {**row, "precision": "bf16-mixed", "compiled": True}], {"card": "NVIDIA H1000", "threads": 1})
    both = capsys.readouterr().out
    assert "not judged: unified (in 32-true" in both
    assert "missed: unified" in both


def test_what_is_not_known_is_refused():
    for wrong, said in (("--round=3", "no option --round"), ("--rounds=0", "at least 1"), ("unified", "no option unified")):
        with pytest.raises(ValueError, match=said):
            main([wrong])
    assert BENCHES["step"] == step.__name__ == "nava_lab.bench.step"
    assert products.__doc__
