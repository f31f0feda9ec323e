"""FLOPs by part of every variant against one closed formula, written from the sublayers' shapes alone; and memory."""

from collections import Counter

import pytest
from torch.autograd.graph import saved_tensors_hooks

from nava_lab.attention.projections import kv_heads
from nava_lab.blocks.joint import Joint
from nava_lab.budget.flops import dummy_inputs, flops_by_part
from nava_lab.budget.measure import measure
from nava_lab.budget.memory import _fused, memory
from nava_lab.budget.thin import Thin
from nava_lab.layers import fused, rotary
from nava_lab.models.denoiser import Denoiser, count_parameters, on_meta
from nava_lab.models.variant import Size, with_settings
from nava_lab.registry import variants
from nava_lab.streams import TEXT, Interface, ModalitySpec, TextSpec
from tests.conftest import fitting

SHAPES = {
    "short": Interface({"video": ModalitySpec(6, 5, 0.08), "audio": ModalitySpec(4, 7, 0.05)}, TextSpec(3, 9)),
    "grid": Interface({"video": ModalitySpec(12, 24, 0.1, (2, 3)), "audio": ModalitySpec(3, 11, 0.04)}, TextSpec(5, features=20)),
}
SIZE = Size(48, 96)
CHANGES = {
    "default": {},
    "gated": {"layers.head_gates": 1.0, "layers.feed_forward": "swiglu", "layers.query_group": 2},
    "late text": {"text_after": 1},
}


def formula(variant, interface, size, served=1):
    """What one sample costs, by part: 2 for every multiply-add. Of two experts it takes one; ``served=2`` is the cost of both."""
    model = on_meta(variant, interface, size)
    dims = Denoiser.dims(variant, interface, size)
    count = {name: spec.tokens for name, spec in interface.modalities.items()} | {TEXT: interface.text.length}
    in_row = list(dims.names)
    total = Counter()
    for stage in variant.plan():
        names = stage.only or tuple(in_row)
        for _ in range(stage.layers):
            total += _layer(stage.config, {name: count[name] for name in names}, dims, count[TEXT], served)
    experts = {name for stage in variant.plan() for name in getattr(stage.config, "experts", ())}
    for name, spec in interface.modalities.items():
        d, n, times = dims.widths[name], count[name], served if name in experts else 1
        c = spec.channels
        hidden = 8 * -(-d // 3)
        total["embedders"] += times * 2 * n * ((7 * c * d + 3 * 7 * d * hidden) if name in variant.ends.conv else c * d)
        total["heads"] += times * 2 * n * c * d
    total["conditioning"] += 2 * sum(_conditioning(model, interface, served))
    if model.exchange is not None:
        total["exchange"] += 2 * sum(part.numel() for key, part in model.exchange.named_parameters() if part.ndim == 2)
    return {part: flops for part, flops in total.items() if flops}


def _conditioning(model, interface, served):
    """Weights that text and levels pass, once per word or per level."""

    def matrices(module):
        named = module.named_parameters()
        return sum(part.numel() for key, part in named if key.endswith("weight") and "words" not in key and part.ndim == 2)

    words = interface.text.length
    high = [model.high[name] for name in model.high] * (served - 1)
    readers = [model.text.parts[name] for name in model.text.parts] + [part["text"] for part in high]
    yield from (words * matrices(reader) for reader in readers)
    if model.level is not None:
        shared = not model.level.split
        levels = 2 if shared and model.in_sequence else 1  # one level for all, and the text's
        yield from (levels * matrices(model.level.parts[name]) for name in model.level.parts)
        yield from (matrices(part["level"]) for part in high)


def _layer(block, count, dims, words, served):
    total, joint = Counter(), isinstance(block, Joint)
    rows = [list(count)] if joint else [[name] for name in count]
    for row in rows:
        n, d, h, e = sum(count[name] for name in row), dims.widths[row[0]], dims.heads[row[0]], dims.head_dim(row[0])
        times = served if row[0] in getattr(block, "experts", ()) else 1
        kv = kv_heads(h, block.query_group)
        gates = d * h if block.head_gates else 0
        total["projections"] += times * 2 * n * (d * (h + 2 * kv) * e + h * e * d + gates)
        total["scores"] += times * 4 * n * n * h * e
        hidden = max(1, round(dims.hidden[row[0]] * block.hidden_share))
        total["feed_forward"] += times * 2 * n * d * hidden * (3 if block.feed_forward == "swiglu" else 2)
        rides = getattr(getattr(block, "bridge", None), "reads_text", False)
        if rides or block.text == "cross":
            sets = [row] if not joint or "text" not in block.per_modality else [[name] for name in row]
            text = words * 2 * d * h * e if block.text == "cross" else 0
            total["text"] += times * 2 * (2 * n * d * h * e + n * gates + len(sets) * text)
            total["text"] += times * (4 * n * words * h * e if block.text == "cross" else 0)
    bridge = getattr(block, "bridge", None)
    if bridge is not None and len(count) > 1:
        for target in count:
            for source in (name for name in count if name != target):
                inner = min((source, target), key=lambda name: dims.widths[name])
                inner = target if bridge.reads_text or bridge.inner == "reader" else inner
                width = dims.heads[inner] * dims.head_dim(inner)
                n, m, d, s = count[target], count[source], dims.widths[target], dims.widths[source]
                own = 0 if bridge.reads_text else 2 * n * d * width
                gates = n * d * dims.heads[inner] if not bridge.reads_text and bridge.head_gates else 0
                total["exchange"] += 2 * (own + 2 * m * s * width + gates) + 4 * n * m * width
    return total


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", variants.names())
def test_flops_by_part(name, shape, change):
    variant = variants.get(name)(depth=3)
    settings = dict(CHANGES[change])
    if variant.clock.layout == "spread":
        settings.pop("layers.query_group", None)  # refused: each head has frequencies of its own
    variant = with_settings(variant, settings)
    size = fitting(variant, SIZE)
    cost = measure(variant, SHAPES[shape], size)
    assert dict(cost.flops) == formula(variant, SHAPES[shape], size)
    assert cost.flops_per_sample == 3 * sum(cost.flops.values())
    both = formula(variant, SHAPES[shape], size, served=2)
    assert cost.idle_flops == sum(both.values()) - sum(cost.flops.values())


def test_an_idle_expert_costs_parameters_and_no_flops_of_a_sample():
    one, two = (measure(variants.get("mova")(depth=3, experts=experts), SHAPES["short"], SIZE) for experts in (False, True))
    assert two.total > one.total
    assert two.active == one.active
    assert two.flops == one.flops
    assert two.idle_flops > 0.5 * one.flops_forward
    assert one.idle_flops == 0


def test_a_tower_may_have_a_feed_forward_ratio_of_its_own():
    """MOVA's audio: 5.83 where its video has 2.7, at any size."""
    variant = variants.get("mova")(depth=3)
    dims = variant.dims(SHAPES["short"], Size(480, 1296))
    assert {name: dims.hidden[name] / dims.widths[name] for name in dims.names} == pytest.approx(
        {"video": 2.7, "audio": 8960 / 1536}, rel=1e-3
    )
    same = measure(with_settings(variant, {"ratio_share": {}}), SHAPES["short"], SIZE)
    own = measure(variant, SHAPES["short"], SIZE)
    assert own.groups["audio"] > same.groups["audio"]
    assert own.groups["video"] == same.groups["video"]
    assert own.flops["feed_forward"] > same.flops["feed_forward"]


@pytest.mark.parametrize("name", variants.names())
def test_a_thin_model_stands_for_the_whole(name):
    variant, interface = variants.get(name)(depth=5, text_after=1), SHAPES["short"]
    size = fitting(variant, SIZE)
    thin, whole = Thin.of(variant, interface, size), on_meta(variant, interface, size)
    assert len(thin.model.blocks) < len(whole.blocks)
    assert thin.parameters == count_parameters(whole)
    assert flops_by_part(thin, interface) == flops_by_part(Thin(whole, (1,) * len(whole.blocks)), interface)


@pytest.mark.parametrize("name", ["unified", "mova"])
def test_memory_is_what_a_real_pass_keeps(name, monkeypatch):
    """Activations counted on a thin model without memory, against those of a whole model on a CPU."""
    variant, interface = variants.get(name)(depth=4), SHAPES["short"]
    found = memory(variant, interface, SIZE)
    model = Denoiser(variant, interface, SIZE)
    model.backend = _fused
    assert found.weights == 4 * count_parameters(model)
    assert _kept(model, interface) <= found.activations  # an eager CPU's formulas keep less
    for module in (fused, rotary):
        monkeypatch.setattr(module, "eager", lambda *tensors: False)
    assert found.activations == pytest.approx(_kept(model, interface), rel=0.02)
    assert found.total(8) == 5 * found.weights + 8 * found.activations
    assert memory(variant, interface, SIZE, average=False).total(8) == 4 * found.weights + 8 * found.activations
    assert sum(found.parts(8).values()) == found.total(8)


def _kept(model, interface) -> int:
    """Bytes that a forward pass of one sample keeps for the backward pass, weights aside."""
    known, kept, alive = {part.untyped_storage()._cdata for part in model.parameters()}, [0], []

    def note(tensor):
        if tensor.untyped_storage()._cdata not in known:
            known.add(tensor.untyped_storage()._cdata)
            alive.append(tensor)
            kept[0] += tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        model(*dummy_inputs(interface, 1, "cpu"))
    return kept[0]
