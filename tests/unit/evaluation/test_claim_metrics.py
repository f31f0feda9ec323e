"""The metrics of binding, off-screen sound, semantics and entanglement against hand-worked cases."""

import numpy as np
import pytest
import torch

from nava_lab.evaluation.binding import kappa
from nava_lab.evaluation.semantics import entanglement, guidance_slope, realised
from nava_lab.evaluation.sync import Errors
from nava_lab.registry import metrics, worlds
from nava_lab.streams import Batch, Stream
from nava_lab.worlds.base import Events

NO_TEXT = Stream(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 1, 3))


def events(*clips):
    """Clips as lists of (seconds, kind)."""
    width = max(1, *(len(clip) for clip in clips))
    rows = [list(clip) + [(0.0, 0)] * (width - len(clip)) for clip in clips]
    seconds = torch.tensor([[moment for moment, _ in row] for row in rows], dtype=torch.float64)
    kind = torch.tensor([[number for _, number in row] for row in rows])
    real = torch.tensor([[place < len(clip) for place in range(width)] for clip in clips])
    return Events(seconds, kind, real.double(), real)


def scored(world, name, video, audio, extra):
    metric = metrics.get(name)(worlds.get(world)())
    rows = {key: torch.as_tensor(value) for key, value in extra.items()}
    metric.update_samples(Batch({}, NO_TEXT, torch.arange(len(video)), rows), {"video": events(*video), "audio": events(*audio)})
    return metric, {key: score.value for key, score in metric.compute().items()}


def beside(**modalities):
    """What a world puts beside its clips: their own events."""
    parts = ("seconds", "kind", "amplitude", "real")
    return {f"{name}_{part}": getattr(events(*clips), part) for name, clips in modalities.items() for part in parts}


def slope_of(errors):
    """Of clips with one error each, by scale."""
    return guidance_slope({scale: Errors(np.array(v, dtype=float), np.arange(len(v)), len(v)) for scale, v in errors.items()})


def test_binding_worked_by_hand():
    # Clip 0, map 0->1, 1->2, 2->0: red (0) at .5 with timbre 1 is right, blue (2) at 1.0 with timbre 2 wrong, the flash at
    # 1.5 has no sound within 250 ms. Clip 1, map the identity: one pair, right. Order of listing does not matter.
    maps = [[1, 2, 0], [0, 1, 2]]
    video = [[(1.0, 2), (0.5, 0), (1.5, 1)], [(0.3, 1)]]
    audio = [[(0.51, 1), (1.02, 2)], [(0.31, 1)]]
    metric, found = scored("bind", "binding", video, audio, {"timbre_of": maps})
    assert found["binding_accuracy"] == pytest.approx(2 / 3)
    assert found["binding_kappa"] == pytest.approx((2 / 3 - 1 / 3) / (1 - 1 / 3))
    clips = metric.per_clip()
    assert clips["pairs"].tolist() == [2, 1]
    assert clips["right"].tolist() == [1, 1]


def test_kappa_is_nought_where_there_is_but_one_answer():
    """Whatever is right and wrong."""
    one = kappa(np.array([0.0, 1.0]), np.array([1.0, 1.0]), np.array([1.0, 1.0]))
    assert one[:3] == (0, 0, 0)
    # Beside one of N = 2, one that nobody answered adds nothing.
    for right in (0.0, 1.0):
        both = kappa(np.array([0.0, right]), np.array([1.0, 1.0]), np.array([1.0, 0.5]), answered=np.array([0.0, 1.0]))
        assert both.value == pytest.approx(2 * right - 1)


def test_what_is_not_answered_is_wrong_by_chance_too():
    # Ten questions of K = 2 in two clips: six answered, all right: (6 - 3) of (10 - 5). Half of the six right: chance.
    of, chance, answered = np.array([4.0, 6.0]), np.array([0.5, 0.5]), np.array([4.0, 2.0])
    assert kappa(np.array([4.0, 2.0]), of, chance, answered).value == pytest.approx(0.6)
    assert kappa(np.array([2.0, 1.0]), of, chance, answered).value == 0
    assert kappa(np.zeros(2), of, chance, np.zeros(2)).value == 0
    assert kappa(np.zeros(2), of, chance, of).value == -1


def test_kappa_is_nought_at_chance_and_where_nothing_counts():
    assert kappa(np.array([1.0, 0.0]), np.array([2.0, 2.0]), np.array([0.25, 0.25])).value == 0
    assert kappa(np.zeros(3), np.zeros(3), np.full(3, 0.5)).value == 0
    # Chance is that of what is counted: two of N = 2 and one of N = 4.
    assert kappa(np.array([2.0, 0.0]), np.array([2.0, 1.0]), np.array([0.5, 0.25])).value == pytest.approx(
        (2 / 3 - 1.25 / 3) / (1 - 1.25 / 3)
    )


def test_offscreen_worked_by_hand():
    # Clip 0 (object 0, two seen, one unseen): flashes at .3 and 1.0, sounds at .3 and 1.6; the distractor (3) at 1.6 is lit.
    # Clip 1 (object 1, one seen, none unseen): flash and sound at .5, and sounds at 1.2 and 1.7 that nobody asked for.
    video = [[(0.3, 0), (1.0, 0), (1.6, 3)], [(0.5, 1)]]
    audio = [[(0.3, 0), (1.6, 0)], [(0.5, 1), (1.2, 1), (1.7, 1)]]
    true = beside(video=[[(0.1, 0), (0.6, 0), (1.2, 3)], [(0.4, 1)]], audio=[[(0.1, 0)], [(0.4, 1)]])
    metric, found = scored("offscreen", "offscreen", video, audio, {"kind": [0, 1], "off": [1, 0], **true})
    assert found["silent_share"] == pytest.approx(1 / 3)
    assert found["recall_onscreen"] == pytest.approx((1 + 1) / (2 + 1))
    assert found["recall_offscreen"] == pytest.approx(1 / 1)
    assert found["invented_share"] == pytest.approx(2 / 5)
    assert found["distractor_share"] == pytest.approx(1 / 1)
    # Clip 0 asks for three flashes (two seen, one silent) and three sounds (one unseen), clip 1 for one and one.
    assert found["count_error_video"] == pytest.approx((0 + 0) / 2)
    assert found["count_error_audio"] == pytest.approx((1 + 2) / 2)
    # With the other's sounds: .3 and 1.0 meet .5 and 1.2, and 1.7 stays alone; .5 meets .3, and 1.6 stays alone, unasked for.
    assert found["recall_onscreen_shuffled"] == pytest.approx((2 + 1) / (2 + 1))
    assert found["recall_offscreen_shuffled"] == pytest.approx(1 / 1)
    # 2 of 3 flashes are heard at once. Re-paired with the other clip's sounds: .3 and 1.0 of clip 0 are 200 ms from a sound of
    # clip 1, beyond every tolerance, and so is .5 of clip 1 from .3 of clip 0: chance is 0.
    assert found["onscreen_auc"] == pytest.approx(2 / 3)
    assert metric.per_clip()["unseen"].tolist() == [1, 2]
    assert metric.per_clip()["chance_off"].tolist() == [1, 0]


def test_on_offscreen_what_nobody_asks_for_or_makes_is_not_defined():
    """Not a certain 0, which would be the best there is."""
    true = beside(video=[[(0.1, 0)], [(0.4, 1)]], audio=[[(0.1, 0)], [(0.4, 1)]])
    _, found = scored("offscreen", "offscreen", [[], []], [[], []], {"kind": [0, 1], "off": [0, 0], **true})
    shares = {"silent_share", "invented_share", "distractor_share", "recall_offscreen", "recall_offscreen_shuffled"}
    assert {name for name, value in found.items() if np.isnan(value)} == shares
    assert found["recall_onscreen"] == found["onscreen_auc"] == 0
    assert found["count_error_video"] == found["count_error_audio"] == 1


def test_what_recalls_must_be_read_against():
    """Another clip's sound has most of the unseen events that a text asks for: any sound that meets no flash counts as one."""
    world = worlds.get("offscreen")()
    batch, others = (world.batch("test", torch.arange(64) + by) for by in (0, 1000))
    own, other = (world.events({name: part.tokens for name, part in one.streams.items()}) for one in (batch, others))
    metric = metrics.get("offscreen")(world)
    metric.update_samples(batch, {"video": own["video"], "audio": other["audio"]})
    found = metric.compute()
    for name in ("recall_onscreen", "recall_offscreen"):
        assert found[name].value == pytest.approx(found[f"{name}_shuffled"].value, abs=0.1)
    assert found["recall_offscreen"].value > 0.7


def test_semantics_worked_by_hand():
    # Told: colour 2, timbre 1, three events. Made: flashes of 2, 2, 0; sounds of 1: colour and timbre hold, the number by half.
    made = {"video": np.array([1, 0, 2, 0]), "audio": np.array([0, 1, 0, 0])}
    told = {"colour": np.array(2), "timbre": np.array(1), "count": np.array(3)}
    assert realised(made, told) == pytest.approx((1 + 1 + 0.5) / 3)
    nothing = {"video": np.zeros(4), "audio": np.zeros(4)}
    assert realised(nothing, {"colour": np.array(0), "timbre": np.array(0), "count": np.array(1)}) == 0


def test_semantics_beyond_another_clips_caption():
    extra = {"colour": [0, 1], "timbre": [0, 0], "count": [1, 1], "held_out": [False, True]}
    clips = [[(0.5, 0)], [(0.5, 0)]]  # both red: clip 1 was to be green
    metric, found = scored("entangle", "semantics", clips, clips, extra)
    assert found["semantics"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["count_error_video"] == found["count_error_audio"] == 0
    silent = scored("entangle", "semantics", clips, [[], [(0.5, 0)]], extra | {"count": [1, 3]})[1]
    assert (silent["count_error_video"], silent["count_error_audio"]) == ((0 + 2) / 2, (1 + 2) / 2)
    assert (found["semantics_seen"], found["semantics_held_out"]) == pytest.approx((1, 2 / 3))
    # With the other's caption: clip 0 misses the colour, clip 1 has it. Nothing is gained.
    assert found["semantics_kappa"] == pytest.approx(0)
    assert metric.per_clip()["realised"].tolist() == pytest.approx([1, 2 / 3])


def test_entanglement_is_the_rise_of_the_error_over_the_shuffled_error():
    assert entanglement(np.array(20.0), np.array(65.0), np.array(90.0)) == pytest.approx(0.5)
    # Two clips of 4 words 10 ms apart, two of 64 words 60 ms apart; re-paired, everything is beyond the gate: 250 ms.
    moments = [0.1, 0.6, 1.1, 1.6]
    video = [[(moment, 0)] for moment in moments]
    audio = [[(moment + lag, 0)] for moment, lag in zip(moments, (0.01, 0.01, 0.06, 0.06), strict=True)]
    metric, found = scored("entangle", "entanglement", video, audio, {"text_tokens": [4, 4, 64, 64]})
    assert found["sync_error_ms@4words"] == pytest.approx(10)
    assert found["sync_error_ms@64words"] == pytest.approx(60)
    assert found["entanglement"] == pytest.approx((60 - 10) / 250)
    assert scored("entangle", "entanglement", video, audio, {"text_tokens": [4, 4, 4, 4]})[1] == {}
    # What it is made of, clip by clip: a flash that nobody hears counts as the gate.
    assert metric.per_clip()["words"].tolist() == [4, 4, 64, 64]
    audio[1] = []
    kept = scored("entangle", "entanglement", video, audio, {"text_tokens": [4, 4, 64, 64]})[0].per_clip()
    by_clip = dict(zip(kept["error_clip"].tolist(), kept["error_ms"].tolist(), strict=True))
    assert by_clip == pytest.approx({0: 10, 1: 250, 2: 60, 3: 60})


def test_the_slope_of_the_error_on_guidance():
    assert slope_of({scale: [5 + 3 * scale] for scale in (1, 2, 4, 7)}).value == pytest.approx(3)
    assert slope_of({1: [10], 2: [10], 4: [10], 7: [10]}).value == 0
    # By hand: scales 1, 2, 4, 7 about 3.5; (-2.5 * 0 - 1.5 * 0 + .5 * 0 + 3.5 * 21) / (6.25 + 2.25 + .25 + 12.25).
    assert slope_of({1: [0], 2: [0], 4: [0], 7: [21]}).value == pytest.approx(3.5)
    with pytest.raises(ValueError, match="two or more"):
        slope_of({1: [3]})
    with pytest.raises(ValueError, match="same clips at every scale of guidance, not 1 and 2"):
        slope_of({1: [3], 2: [3, 4]})


def test_the_interval_of_the_slope_is_of_clips_paired_over_scales():
    """Clips of errors far apart that all rise alike: of unpaired clips the interval would be as wide as they are apart."""
    clips = np.linspace(0, 150, 31)
    assert slope_of({scale: clips + 3 * scale for scale in (1, 2, 4, 7)}) == pytest.approx((3, 3, 3, 31))
    rng = np.random.default_rng(0)
    unlike = slope_of({scale: clips + 3 * scale + rng.normal(0, 20, 31) for scale in (1, 2, 4, 7)})
    assert unlike.low < unlike.value < unlike.high
    assert unlike.high - unlike.low > 1


def test_the_shuffled_error_of_sync_by_hand():
    # Own errors 0 and 0; re-paired, .5 against .6 and .6 against .5: 100 ms each.
    _, found = scored("pulse", "sync", [[(0.5, 0)], [(0.6, 0)]], [[(0.5, 0)], [(0.6, 0)]], {})
    assert found["sync_error_ms"] == 0
    assert found["sync_error_shuffled_ms"] == pytest.approx(100)
