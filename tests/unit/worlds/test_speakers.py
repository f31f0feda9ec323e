"""The world of speakers, and its metric against hand-worked cases."""

import dataclasses

import numpy as np
import pytest
import torch

from nava_lab.conditioning.timbre import with_references
from nava_lab.config import load
from nava_lab.evaluation.floor import turn_floors
from nava_lab.evaluation.timbre import boundary_errors, leakage, spans_of
from nava_lab.flow.guidance.algebra import Guidance
from nava_lab.flow.guidance.base import Call
from nava_lab.flow.guidance.timbre import Timbre
from nava_lab.registry import guidance, metrics, worlds
from nava_lab.streams import References
from nava_lab.study.sample import all_say, check_marks
from nava_lab.worlds.voices import ALIKE, LOUDNESS, Voices

MANY = torch.arange(300)


def test_the_voices_of_the_splits_are_different_ones_made_of_the_same_formants():
    world, met = worlds.get("speakers")(), {}
    for split in ("train", "validation", "test"):
        met[split] = set(world.script(split, torch.arange(3000)).extra["voice"].flatten().tolist())
        assert met[split] <= set(world.bank.of(split))
    assert met["train"] & met["test"] == met["train"] & met["validation"] == met["validation"] & met["test"] == set()
    assert len(met["train"]) == 32
    unit = world.bank.shapes / LOUDNESS
    assert (unit[sorted(met["train"])] @ unit[sorted(met["test"])].T).max() < 0.9
    lit = unit[sorted(met["train"])] > 0.3
    assert bool(lit.any(0)[(unit[sorted(met["test"])] > 0.3).any(0)].all())


@pytest.mark.parametrize("together", [2, 3, 4])
def test_voices_of_a_clip_are_far_apart(together):
    world = worlds.get("speakers")(voices=together)
    voices = world.script("test", MANY).extra["voices"] / LOUDNESS
    cosines = voices @ voices.mT - torch.eye(together)
    assert cosines.max() <= ALIKE + 1e-5
    with pytest.raises(ValueError, match=r"world.bands=4 cannot"):
        Voices(4, together)


@pytest.mark.parametrize(("spans", "voices"), [(2, 1), (2, 2), (4, 2), (4, 4)])
def test_spans_are_as_written_and_everybody_speaks(spans, voices):
    world = worlds.get("speakers")(spans=spans, voices=voices)
    batch = world.batch("train", MANY)
    start, end, speaker = (batch.extra[name] for name in ("span_start", "span_end", "speaker"))
    assert ((end - start) >= 0.3 - 1e-9).all()
    assert ((start[:, 1:] - end[:, :-1]) >= 0.1 - 1e-9).all()
    assert (start[:, 0] >= 0.1 - 1e-9).all()
    assert (end[:, -1] <= 1.9 + 1e-9).all()
    assert all(set(row.tolist()) == set(range(voices)) for row in speaker)
    for row, caption in enumerate(world.captions("train", MANY[:20])):
        for i, (colour, mark, first, last) in enumerate(zip(*[iter(caption.split())] * 4, strict=True)):
            assert (colour, mark) == (world.scene.colours[speaker[row, i]], "voice")
            assert (float(first[:-1]), float(last[:-1])) == pytest.approx((float(start[row, i]), float(end[row, i])))
            assert batch.text.span[row].tolist().index(i) == 4 * i + 1


def test_a_prompt_marks_its_spans_as_a_caption_does():
    world = worlds.get("speakers")()
    batch = world.batch("test", MANY[:5])
    assert torch.equal(world.tokenizer(world.captions("test", MANY[:5])).span, batch.text.span)
    assert world.tokenizer(["red voice 0.2s 0.6s", ""]).span.tolist() == [[-1, 0, *[-1] * 14], [-1] * 16]


def test_references_are_the_speakers_and_tokens_carry_their_span():
    world = worlds.get("speakers")(voices=4)
    batch = world.batch("test", MANY)
    features = batch.text.references.features
    for row in range(50):
        for i, who in enumerate(batch.extra["speaker"][row]):
            torch.testing.assert_close(features[row, i], batch.extra["voices"][row, who] / LOUDNESS)
    bands = world.untokenize({name: part.tokens for name, part in batch.streams.items()})[1]
    loud = bands.norm(dim=-1).unflatten(1, (-1, world.audio_patch)).mean(-1)
    inside = batch.streams["audio"].span >= 0
    assert loud[inside].mean() > 5 * loud[~inside].mean()
    assert loud[inside].min() > 0.3
    nearest = torch.einsum("bnf,bkf->bnk", bands.unflatten(1, (-1, world.audio_patch)).mean(2), batch.extra["voices"]).argmax(-1)
    own = batch.extra["speaker"].gather(1, batch.streams["audio"].span.clamp(min=0))
    assert torch.equal(nearest[inside], own[inside])


def test_mouths_open_as_wide_as_the_sound_is_loud():
    world = worlds.get("speakers")(video_hz=50.0, voices=2)
    batch = world.batch("test", MANY[:40])
    video, audio = world.untokenize({name: part.tokens for name, part in batch.streams.items()})
    mouth = torch.einsum("bthwc,khwc->bkt", video - video.amin(1, keepdim=True), world.mouths)
    loud, wide = audio.norm(dim=-1).flatten(), mouth.sum(1).flatten()
    assert torch.corrcoef(torch.stack((loud, wide)))[0, 1] > 0.999


@pytest.mark.parametrize(("missing", "share"), [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)])
def test_references_may_be_missing_and_count_where_they_are_given(missing, share):
    world = worlds.get("speakers")(missing=missing)
    batch = world.batch("test", MANY)
    assert abs(float(batch.text.references.valid.float().mean()) - share) < 0.06
    metric = metrics.get("timbre")(world)
    metric.update_clips(batch, {name: part.tokens for name, part in batch.streams.items()})
    assert metric.per_clip()["given"].sum() == batch.text.references.valid.sum()
    scores = {name: score.value for name, score in metric.compute().items()}
    about_references = ["timbre_kappa", "timbre_accuracy", "leakage"]
    assert [name for name in scores if np.isnan(scores[name])] == (about_references if missing == 1 else [])
    assert missing == 1 or scores["timbre_kappa"] == pytest.approx(1)


def test_more_references_than_spans_are_refused():
    text = worlds.get("speakers")(spans=2).batch("test", MANY[:2]).text
    with pytest.raises(ValueError, match="no word of its caption marks span 2"):
        with_references(text, References(torch.ones(2, 3, 16), torch.ones(2, 3, dtype=torch.bool)))


def test_span_means_and_leakage_by_hand():
    # Ten frames of 100 ms, two bands; voices along the bands. Frames 2 to 5 sound (1, .5), frame 7 on (0, 1), the rest nothing.
    bands = torch.zeros(1, 10, 2, dtype=torch.float64)
    bands[0, 2:6] = torch.tensor([1.0, 0.5])
    bands[0, 7:] = torch.tensor([0.0, 1.0])
    means = spans_of(bands, torch.tensor([[0.2, 0.5]]), torch.tensor([[0.6, 0.9]]), 10.0)
    # Span 1 has frames 5, 6, 7, 8: (1, .5), nothing, and (0, 1) twice.
    torch.testing.assert_close(means, torch.tensor([[[1.0, 0.5], [0.25, 0.625]]], dtype=torch.float64))
    voices = torch.eye(2, dtype=torch.float64).unsqueeze(0)
    torch.testing.assert_close(
        leakage(means, voices, torch.tensor([[0, 1]])), torch.tensor([[0.5 / 1.5, 0.25 / 0.875]], dtype=torch.float64)
    )
    assert float(leakage(means * 0, voices, torch.tensor([[0, 1]])).sum()) == 0


def boundaries_of(loud, start, end):
    """Of one band of so loud frames of 50 ms, and one span."""
    bands = torch.tensor(loud, dtype=torch.float64).view(1, -1, 1) * LOUDNESS
    span = (torch.tensor([[moment]], dtype=torch.float64) for moment in (start, end))
    return boundary_errors(bands, *span, 20.0)[0].tolist()


def test_boundaries_by_hand():
    # Half of 1 lies between frames 3 (0, centre .175) and 4 (.8), and between frames 9 (1, centre .475) and 10 (.25).
    loud = np.array([0, 0, 0, 0, 0.8, *[1] * 5, 0.25, 0, 0, 0])
    found = pytest.approx([0.25 - (0.175 + 0.05 * 0.5 / 0.8), 0.475 + 0.05 * 0.5 / 0.75 - 0.5], abs=1e-9)
    assert boundaries_of(loud, 0.25, 0.5) == found
    assert boundaries_of(0.3 * loud, 0.25, 0.5) == found
    assert boundaries_of(0.1 + 0.9 * loud, 0.25, 0.5) == found  # a hum below it
    # Silence has no boundaries, nor has a sound without a pause. One that is on when the clip begins, began with it.
    assert boundaries_of(0.05 * loud, 0.25, 0.5) == boundaries_of([1] * 30, 0.5, 0.8) == [0.25, 0.25]
    assert boundaries_of([1] * 6 + [0] * 24, 0.1, 0.3) == pytest.approx([0.1, 0])


TURNS = {0.0: (0.01, 0.01), 0.03: (0.5, 1.5), 0.1: (1.5, 5.0)}  # by noise: greatest median and 95th percentile, ms


def test_the_floor_of_boundaries_is_made_anew():
    rows = list(turn_floors(worlds.get("speakers")()))
    assert {row.sigma for row in rows} == set(TURNS)
    for row in rows:
        median, tail = TURNS[row.sigma]
        assert row.median <= median
        assert row.tail <= tail
        assert row.miscounted <= 0.01


def late(world, index, seconds):
    """Bands of clips whose sound comes ``seconds`` late, to a part of a frame; and the spans as they were."""
    script = world.script("test", index)
    start, end = (script.extra[name] for name in ("span_start", "span_end"))
    moved = {**script.extra, "span_start": start + seconds, "span_end": end + seconds}
    return world.shown(dataclasses.replace(script, extra=moved))[1].double(), start, end, world.audio_hz


def test_a_shift_of_the_sound_is_recovered_with_slope_one():
    """Either way, at any part of a frame."""
    shifts = np.linspace(0.005, 0.14, 10)
    for sign in (-1, 1):
        found = [boundary_errors(*late(worlds.get("speakers")(), MANY[:96], sign * by)) for by in shifts]
        medians = np.array([float(part.median()) for part in found])
        assert abs(np.polyfit(shifts, medians, 1)[0] - 1) <= 0.02
        assert np.abs(medians - shifts).max() <= 0.002


def blurred(bands, frames):
    """The running mean."""
    kernel = torch.ones(1, 1, frames, dtype=bands.dtype) / frames
    flat = torch.nn.functional.conv1d(bands.mT.flatten(0, 1).unsqueeze(1), kernel, padding=frames // 2)
    return flat.view(bands.mT.shape).mT


@pytest.mark.parametrize("spans", [2, 4])
def test_no_cliff_where_a_model_is_quieter_blurred_or_noisy(spans):
    """A span is judged by its own loudness and pause: what a person would still call its beginning is found."""
    bands, *spoken = late(worlds.get("speakers")(spans=spans), MANY[:128], 0.0)

    def median_ms(changed):
        return 1000 * float(boundary_errors(changed, *spoken).median())

    assert max(median_ms(bands * scale) for scale in (1.3, 0.9, 0.7, 0.5, 0.4, 0.3)) < 0.1
    assert all(median_ms(blurred(bands, frames)) < most for frames, most in ((3, 2), (5, 7), (7, 17), (11, 50)))
    noise = torch.randn(bands.shape, generator=torch.Generator().manual_seed(0), dtype=bands.dtype)
    assert all(median_ms(bands + sigma * noise) < most for sigma, most in ((0.05, 1), (0.1, 2), (0.15, 3), (0.25, 6)))
    assert median_ms(bands + 0.1) < 1  # a hum of a quarter of the loudness


def test_other_clips_sound_is_at_chance_though_some_of_its_spans_are_silent():
    """Exactly: each clip with its voices in both orders, so that what is right in one is wrong in the other."""
    world = worlds.get("speakers")(spans=2)
    metric = metrics.get("timbre")(world)
    for first in range(0, 600, 200):
        batch, other = (world.batch("test", torch.arange(first, first + 200) + by) for by in (0, 10_000))
        sound = {"video": batch.streams["video"].tokens, "audio": other.streams["audio"].tokens}
        for turn in (0, 1):
            extra = {**batch.extra, "voices": batch.extra["voices"].roll(turn, 1)}
            metric.update_clips(dataclasses.replace(batch, index=2 * batch.index + turn, extra=extra), sound)
    scores, kept = metric.compute(), metric.per_clip()
    silent = scores["silent_spans"].value
    assert 0.02 < silent < 0.05
    assert scores["timbre_kappa"].value == pytest.approx(0, abs=1e-12)
    # Were chance 1/K of all spans, it would lie their share below 0.
    assert 2 * scores["timbre_accuracy"].value - 1 == pytest.approx(-silent)
    assert kept["heard"].sum() == pytest.approx(kept["given"].sum() * (1 - silent))


def test_one_voice_is_nobody_s_merit_and_silence_no_leak():
    world = worlds.get("speakers")(voices=1)
    batch = world.batch("test", MANY[:16])
    for muted in (1, 16):
        tokens = batch.streams["audio"].tokens.clone()
        tokens[:muted] = 0
        metric = metrics.get("timbre")(world)
        metric.update_clips(batch, {"video": batch.streams["video"].tokens, "audio": tokens})
        scores = metric.compute()
        assert scores["timbre_kappa"][:3] == (0, 0, 0)
        assert scores["timbre_accuracy"].value == pytest.approx(1 - muted / 16)
    assert np.isnan(scores["leakage"].value)
    assert scores["silent_spans"].value == 1
    assert scores["boundary_error_ms"].value == 250


def test_true_boundaries_and_leakage_have_a_small_floor():
    world = worlds.get("speakers")()
    batch = world.batch("test", MANY)
    metric = metrics.get("timbre")(world)
    metric.update_clips(batch, {name: part.tokens for name, part in batch.streams.items()})
    scores = metric.compute()
    assert scores["boundary_error_ms"].value < 1
    assert scores["leakage"].value < 1e-3
    assert scores["silent_spans"].value == 0
    moved = torch.roll(batch.streams["audio"].tokens.unflatten(-1, (world.audio_patch, -1)).flatten(1, 2), 1, 1)
    late = metrics.get("timbre")(world)
    late.update_clips(
        batch, {"video": batch.streams["video"].tokens, "audio": moved.unflatten(1, (-1, world.audio_patch)).flatten(2)}
    )
    assert late.compute()["boundary_error_ms"].value == pytest.approx(20, abs=2)


def test_a_swap_of_voices_is_all_wrong_and_all_leaked():
    world = worlds.get("speakers")(voices=2)
    batch = world.batch("test", MANY[:64])
    voices, speaker = batch.extra["voices"], batch.extra["speaker"]
    assert np.isclose(float(speaker.double().mean()), 0.5, atol=0.1)
    script = world.script("test", MANY[:64])
    swapped = type(script)(script.seen, script.heard, script.words, {**script.extra, "voices": voices.flip(1)})
    tokens = world.tokens(*world.shown(swapped))
    metric = metrics.get("timbre")(world)
    metric.update_clips(batch, {name: part.tokens for name, part in tokens.items()})
    scores = {name: score.value for name, score in metric.compute().items()}
    assert scores["timbre_accuracy"] == 0
    assert scores["timbre_kappa"] == pytest.approx(-1)
    assert scores["leakage"] > 0.99


def test_captions_are_marked_wherever_they_come_from():
    """The world's own, in one's own words, are the world's own to the bit, references too."""
    world = worlds.get("speakers")(spans=3, missing=0.3)
    batch = world.batch("test", MANY[:20])
    said = world.encode(world.captions("test", MANY[:20]))
    assert torch.equal(said.tokens, batch.text.tokens)
    assert torch.equal(said.span, batch.text.span)
    clip = world.batch("test", MANY[4:5])
    found = all_say(world.captions("test", MANY[4:5])[0], world, clip)
    for part in ("tokens", "span", "valid"):
        assert torch.equal(getattr(found, part), getattr(clip.text, part))
    assert torch.equal(found.references.valid, clip.text.references.valid)
    assert torch.equal(found.references.features, clip.text.references.features)


def test_a_prompt_carries_the_references_whose_spans_it_marks():
    world = worlds.get("speakers")(spans=3)
    batch = world.batch("test", MANY[:4])
    for prompt, shown in (("red voice 0.3s 0.7s", [True, False, False]), ("red", [False] * 3), ("", [False] * 3)):
        text = all_say(prompt, world, batch)
        assert text.references.valid.tolist() == [shown] * 4
        with_references(text, text.references)


def test_a_negative_prompt_s_marks_stand_for_the_sample_s_own_references():
    world = worlds.get("speakers")(spans=3)
    batch = world.batch("test", MANY[:4])
    call = Call(batch.streams, {name: torch.ones(4) for name in batch.streams}, batch.text, None)
    for prompt, shown in (("red voice 0.3s 0.7s red voice 0.9s 1.3s", [True, True, False]), ("red", [False] * 3)):
        null = guidance.get("negative")(2.0, prompt).null(call, world.encode).text
        assert null.references.valid.tolist() == [shown] * 4
        assert torch.equal(null.references.features, batch.text.references.features)
        marks = [place for place, word in enumerate(prompt.split()) if word == "voice"]
        assert [int(null.span[0, place]) for place in marks] == list(range(len(marks)))
        assert int((null.span >= 0).sum()) == 4 * len(marks)


def test_guidance_by_timbres_that_a_prompt_does_not_show_is_refused_and_their_absence_told():
    config, told = load(["world=speakers", "flow.timbre_dropout=0.1"]), []
    guided = Guidance((Timbre(2.0),))
    with pytest.raises(ValueError, match=r"'red' marks no span; say it as the world does .*voice"):
        check_marks("red", config, guided, told.append)
    check_marks("red", config, Guidance(), told.append)
    assert len(told) == 1
    assert "no reference timbre is shown" in told[0]
    check_marks("red voice 0.3s 0.7s", config, guided, told.append)
    assert len(told) == 1
    within = load(["world=speakers", "conditioning.timbre_in_span=true"])
    check_marks("red voice 0.3s 0.7s", within, Guidance(), told.append)
    assert "not off the times that your prompt says" in told[1]
