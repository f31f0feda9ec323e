"""What an exchange computes by is asked at a warm start: every choice of it that differs is refused, and what mends it is named."""

from dataclasses import fields, replace

import pytest
import torch
from diffusers import LTX2VideoTransformer3DModel

from nava_lab.blocks.base import Dims
from nava_lab.checkpoints import agree
from nava_lab.checkpoints.convert import plan
from nava_lab.checkpoints.files import Tensors
from nava_lab.models.denoiser import on_meta
from nava_lab.models.towers import Bridge
from nava_lab.models.variant import with_settings
from nava_lab.registry import variants
from nava_lab.streams import Interface, ModalitySpec, TextSpec
from tests.checkpoints.test_ovi import layout, ovi
from tests.checkpoints.test_parity import LTX, RELEASES, as_released

SPECS = {"video": ModalitySpec(4, 32, 1 / 3, (4, 4), stride=8), "audio": ModalitySpec(4, 5, 0.04, stride=4)}
DIMS = Dims({"video": 16, "audio": 8}, {"video": 2, "audio": 2}, {"video": 64, "audio": 32})
# What a choice cannot be without, by its value; the text's queries serve no modulated reading, so 2.3 has no such model.
PLAIN = {"bridge.gate": None, "bridge.norm": None, "bridge.affine": None}
BESIDE = {"shared_query": PLAIN, "own": {"bridge.gate": "level"}}


def others():
    """Every choice of every field."""
    for part in fields(Bridge):
        yield from ((f"bridge.{part.name}", value) for value in part.metadata.get("choices", (2,)))


def shapes_of(path, state):
    shapes = {key: tuple(getattr(part, "shape", part)) for key, part in state.items()}
    return Tensors(path, dict.fromkeys(shapes, path), shapes)


def ltx2(release, **settings):
    text = TextSpec(8, features=24 if release == "2.3" else 16)
    base = with_settings(variants.get("ltx2")(depth=2, heads=2), {"clock.first_frame": True, **RELEASES[release][1]})
    return base, with_settings(base, settings), Interface(SPECS, text)


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    with torch.device("meta"):
        models = {release: LTX2VideoTransformer3DModel(**LTX, **RELEASES[release][0]) for release in RELEASES}
    return {name: shapes_of(tmp_path_factory.mktemp("ltx2"), as_released(model.state_dict())) for name, model in models.items()}


def held(variant, interface, tensors):
    plan(on_meta(variant, interface, DIMS), tensors)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("key", "value"), others())
def test_every_choice_of_an_exchange_is_held_against_ltx2(releases, release, key, value):
    if (release, value) == ("2.3", "shared_query"):
        return
    base, variant, interface = ltx2(release, **{**BESIDE.get(value, {}), key: value})
    same = (base.bridge.build(), base.bridge.layers(2)) == (variant.bridge.build(), variant.bridge.layers(2))
    if same:
        held(base, interface, releases[release])
        return
    with pytest.raises(ValueError, match=rf"Set .*variant\.{'bridge' if value == 'conditional' else key}\b"):
        held(variant, interface, releases[release])


def test_the_words_of_a_refusal_are_those_that_mend_it(releases):
    for release, settings, said in (
        ("2.3", {"bridge.head_gates": 0.0}, "bridge.head_gates is 2 there and 0 here. Set variant.bridge.head_gates=2, or start"),
        ("2.0", {"bridge.head_gates": 1.0}, "bridge.head_gates is 0 there and 1 here. Set variant.bridge.head_gates=0, or start"),
        ("2.0", {"bridge.level": "own"}, "bridge.level is other there and own here. Set variant.bridge.level=other, or start"),
        ("2.0", {"bridge.every": 2}, "all there and 0 here. Set variant.bridge.placement=full variant.bridge.every=1, or start"),
        ("2.3", {"ends.text": "mlp"}, "ends.text is none there and mlp here. Set variant.ends.text=none, or start"),
        ("2.0", {"bridge.affine": True}, "bridge.affine is false there and true here. Set variant.bridge.affine=false, or start"),
    ):
        with pytest.raises(ValueError, match="computes otherwise") as refused:
            held(*ltx2(release, **settings)[1:], releases[release])
        assert said in str(refused.value)


OVIS = [{"rotary": False}, {"gate": "learned"}, {"every": 2}, {"kind": "cross"}, {"directions": "audio->video"}]


@pytest.mark.parametrize("choice", OVIS, ids=str)
def test_every_choice_of_an_exchange_is_held_against_ovi(tmp_path, choice):
    tensors = shapes_of(tmp_path, layout())
    plan(ovi(), tensors)
    model = ovi(**{f"bridge.{key}": value for key, value in choice.items()})
    with pytest.raises(ValueError, match=rf"Set .*variant\.bridge\.{next(iter(choice))}="):
        plan(model, tensors)


def test_connectors_outside_are_no_torn_file(releases, monkeypatch):
    """2.3 takes its text in each stream's width: nothing is to be fetched again; what may differ is then what it lacks."""
    _, variant, interface = ltx2("2.3", **{"ends.text": "mlp"})
    with pytest.raises(ValueError, match=r"lacks 8 tensors .*caption_projection"):
        plan(on_meta(variant, interface, DIMS), releases["2.3"], differ=["ends.text"])
    blind = [replace(one, read=lambda part: None) if one.name == "ends.text" else one for one in agree.QUESTIONS]
    monkeypatch.setattr(agree, "QUESTIONS", tuple(blind))  # a planted slip: nobody asks
    with pytest.raises(ValueError, match=r"lacks 8 tensors .* fetch it again"):
        held(variant, interface, releases["2.3"])


def test_a_question_that_is_not_asked_is_noticed(releases, monkeypatch):
    """A planted slip: without the question of where it stands, an exchange at the start of layers is taken for LTX-2's."""
    _, variant, interface = ltx2("2.0", **{"bridge.at": "start"})
    blind = [replace(one, read=lambda part: None) if one.name == "bridge.at" else one for one in agree.QUESTIONS]
    monkeypatch.setattr(agree, "QUESTIONS", tuple(blind))
    held(variant, interface, releases["2.0"])
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"Set variant\.bridge\.at=middle"):
        held(variant, interface, releases["2.0"])
