"""Every number of the published sizes' table, counted on the meta device: totals, groups, and the arithmetic behind them."""

import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from nava_lab.blocks.base import Dims
from nava_lab.budget.thin import Thin
from nava_lab.cli import main
from nava_lab.config import ConfigError
from nava_lab.models.denoiser import on_meta
from nava_lab.models.variant import released
from nava_lab.registry import variants
from nava_lab.study.describe import described

SPLIT = ("attention", "text", "modulation", "feed_forward", "norms")
VIDEO, AUDIO = r"storeys\.parts\.video\.", r"storeys\.parts\.audio\."


def counted(name, size="", **changes):
    variant, found = released(variants.get(name), size, **changes)
    model = on_meta(variant, found.interface, found.dims(variant))
    return {key: part.numel() for key, part in model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "size", "changes", "total"),
    [
        ("nava", "", {}, 6_296_995_520),
        ("nava", "", {"keep": SPLIT}, 7_178_034_880),
        ("nava", "20ch", {}, 6_294_341_204),
        ("nava", "20ch", {"keep": SPLIT}, 7_175_380_564),
        ("nava", "20ch", {"placement": "sandwich"}, 6_294_341_204),
        ("nava", "20ch", {"placement": "sandwich", "keep": SPLIT}, 7_175_380_564),
        ("nava", "20ch", {"align_fraction": 0.0}, 5_538_813_524),
        ("nava", "20ch", {"align_fraction": 1.0}, 7_805_396_564),
        ("nava", "20ch", {"align_fraction": 1.0, "keep": SPLIT}, 10_448_514_644),
        ("nava", "20ch", {"align_fraction": 2 / 3}, 7_049_868_884),
        ("nava", "20ch", {"align_fraction": 2 / 3, "keep": SPLIT}, 8_811_947_604),
        ("ovi", "", {}, 11_660_753_108),
        ("ltx2", "2.0", {}, 18_876_174_592),
        ("ltx2", "2.3", {}, 18_988_838_144),
        ("mova", "", {}, 32_656_733_440),
        ("mova", "active", {}, 18_367_832_256),
        ("magihuman", "", {}, 15_299_419_136),
    ],
)
def test_total(name, size, changes, total):
    assert sum(counted(name, size, **changes).values()) == total


@pytest.mark.parametrize(
    ("name", "widths", "heads", "hidden"),
    [
        ("nava", {"video": 3072, "audio": 3072}, (24, 24), (14336, 14336)),
        ("ovi", {"video": 3072, "audio": 3072}, (24, 24), (14336, 14336)),
        ("ltx2", {"video": 4096, "audio": 2048}, (32, 32), (16384, 8192)),
        ("mova", {"video": 5120, "audio": 1536}, (40, 12), (13824, 8960)),
        ("magihuman", {"video": 5120, "audio": 5120, "text": 5120}, (40,) * 3, (20480,) * 3),
    ],
)
def test_sizes_follow_from_settings_as_at_any_budget(name, widths, heads, hidden):
    variant, found = released(variants.get(name))
    made = found.dims(variant)
    assert made == Dims(widths, dict(zip(widths, heads, strict=True)), dict(zip(widths, hidden, strict=True)))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ltx2", {"width_share": {"audio": 0.25}}),
        ("mova", {"width_share": {"audio": 0.6}}),
        ("mova", {"ratio_share": {}}),
        ("magihuman", {"text_place": "cross"}),
    ],
    ids=str,
)
def test_a_published_size_follows_every_setting(name, changes):
    (plain, found), (other, _) = (released(variants.get(name), "", **part) for part in ({}, changes))
    counts = [Thin.of(variant, found.interface, found.dims(variant)).parameters for variant in (plain, other)]
    assert counts[0] != counts[1]


def test_heads_are_said_by_their_number_or_by_their_channels():
    with pytest.raises(
        ValueError, match=r"variant\.head_dim=128 .* and variant\.heads=8: give one of the two, and 0 for the other"
    ):
        released(variants.get("mova"), heads=8)
    variant, found = released(variants.get("mova"), heads=8, head_dim=0)
    assert found.dims(variant).heads == {"video": 8, "audio": 8}


def test_describing_a_published_size_follows_overrides():
    more, row = (
        described(["variant=nava", "size=published", part]) for part in ("variant.heads=48", "variant.text_place=sequence")
    )
    assert more["heads"] == {"video": 48, "audio": 48}
    assert more["parameters"]["total"] == 6_296_995_520
    assert row["parameters"]["total"] < 6_296_995_520  # no text cross-attention


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["variant=nava", "variant.heads=25"], "width 3072 of video does not divide into 25 heads"),
        (["variant=nava", "variant.width_share.audio=0.5"], "the widths differ"),
        (["variant=ovi", "variant.text_place=sequence"], "text_place='sequence'"),
    ],
    ids=lambda part: part[-1] if isinstance(part, list) else None,
)
def test_a_setting_that_a_published_size_cannot_have_is_refused_with_the_reason(overrides, said):
    with pytest.raises(ConfigError, match=said):
        described([*overrides, "size=published"])


def test_a_setting_is_judged_at_the_published_depth():
    """Of 30 layers, 10 can go without text; of the sandbox's 6 they could not."""
    later = described(["variant=nava", "size=published", "variant.text_after=10"])
    assert sum(stage["layers"] for stage in later["stages"] if not stage["text"]) == 10
    with pytest.raises(ConfigError, match=r"variant\.text_after=30: of 30 layers, 0 to 29"):
        described(["variant=nava", "size=published", "variant.text_after=30"])


def test_a_published_size_says_what_it_is_described_on(capsys):
    two, one = (described(["variant=ltx2", "size=published", *more]) for more in (["training.batch_size=2"], []))
    assert two["world"] == one["world"] == "its own latents"
    assert (two["memory"]["batch"], one["memory"]["batch"]) == (2, 1)
    assert two["memory"]["activations"] == 2 * one["memory"]["activations"]
    main(["describe", "variant=ltx2", "size=published"])
    assert capsys.readouterr().out.startswith("ltx2 on its own latents: ")


@pytest.mark.parametrize("part", ["world=bind", "world.fps=8", "conditioning.timbre=none", "clips.train=8", "difficulty=easy"])
def test_what_a_published_size_has_no_part_in_is_refused(part):
    with pytest.raises(
        ConfigError, match=re.escape(f"{part}: size=published is described on the latents and words of its release")
    ):
        described(["variant=nava", "size=published", part])


def test_a_mask_is_drawn_of_a_world_alone(capsys):
    with pytest.raises(SystemExit):
        main(["describe", "variant=nava", "size=published", "--mask"])
    assert "--mask draws the tokens of a world, and size=published is described without one" in capsys.readouterr().err


def test_sizes_given_one_by_one_must_be_of_the_rows_modalities():
    variant, found = released(variants.get("nava"))
    with pytest.raises(ValueError, match="sizes are given of video, audio, and the model's row holds audio, text, video"):
        on_meta(replace(variant, text_place="sequence"), found.interface, found.dims(variant))


@pytest.mark.parametrize("name", ["nava", "ovi", "ltx2", "mova", "magihuman"])
def test_all_are_measured_on_one_clip(name):
    """As long, and of as many pixels, whatever the codec makes of them; a causal one's first step holds one frame."""
    for found in variants.get(name).published().values():
        seen, heard = found.interface.modalities["video"], found.interface.modalities["audio"]
        pixels = 16 if seen.context else 32  # edge of a token; the codec of Wan2.1 halves it
        steps, left = divmod(seen.tokens, seen.grid[0] * seen.grid[1])
        assert (left, tuple(edge * pixels for edge in seen.grid)) == (0, (704, 1280))
        assert 1 + (steps - 1) * seen.stride == 121
        assert seen.stride == pytest.approx(seen.seconds * 24)
        assert heard.tokens * heard.seconds == pytest.approx(121 / 24, abs=heard.seconds / 2)


def layers(first, last):
    """A pattern for the blocks from ``first`` to before ``last``."""
    return rf"blocks\.({'|'.join(map(str, range(first, last)))})\."


DOUBLE, SINGLE = layers(0, 10), layers(10, 30)
ATTENTION = r"attention\.(projections\.parts\.{m}\.qkv|outputs\.parts\.{m})\."
TEXT = r"text\.parts\.parts\.{m}\.(query|key|value|output)\.linear"


def of(pattern, modality):
    return pattern.replace("{m}", modality)


NAVA = {
    r"embed\.video\.": 592_896,
    r"embed\.audio\.first": 2_755_584,
    r"embed\.audio\.w[123]": 528_482_304,
    r"timbre\.": 10_042_752,
    r"text\.": 22_026_240,
    r"level\..*mlp": 10_229_760,
    r"level\..*projection": 56_641_536,
    **{DOUBLE + of(ATTENTION, name): 377_610_240 for name in ("video", "audio")},
    **{DOUBLE + of(TEXT, name): 377_610_240 for name in ("video", "audio")},
    DOUBLE + r"attention\..*norm": 122_880,
    DOUBLE + r"text\..*norm": 122_880,
    DOUBLE + r"feed_forward": 880_977_920,
    DOUBLE + r"text_norm": 61_440,
    **{DOUBLE + rf"modulation\..*{name}": 184_320 for name in ("video", "audio")},
    SINGLE + of(ATTENTION, "shared"): 755_220_480,
    SINGLE + of(TEXT, "shared"): 755_220_480,
    SINGLE + r"feed_forward": 1_761_955_840,
    SINGLE + r"attention\..*norm": 122_880,
    SINGLE + r"text\..*norm": 122_880,
    SINGLE + r"text_norm": 122_880,
    SINGLE + r"modulation": 368_640,
    r"heads\.video\.linear": 590_016,
    r"heads\.video\.table": 6_144,
    r"heads\.audio\.linear": 393_344,
    r"heads\.audio\.table": 6_144,
    DOUBLE: 2_392_094_720,
    SINGLE: 3_273_134_080,
    r"(?!blocks)": 631_766_720,
    layers(0, 1): 239_209_472,
    layers(10, 11): 163_656_704,
}


def ovi():
    found = {r"embed\.video\.": 592_896, r"embed\.audio\.first": 433_152, r"embed\.audio\.w": 528_482_304}
    found |= {r"heads\.video\.linear": 590_016, r"heads\.audio\.linear": 61_460}
    for name in ("video", "audio"):
        reader, storey = rf".*bridge\.readers\.parts\.{name}\.", rf".*storeys\.parts\.{name}\."
        found |= {
            rf"text\.parts\.{name}": 22_026_240,
            rf"level\.parts\.{name}.mlp": 10_229_760,
            rf"level\.parts\.{name}.projection": 56_641_536,
            storey + of(ATTENTION, "shared"): 1_132_830_720,
            storey + r"attention.*norm": 184_320,
            reader + r"(query|key|value|output)\.linear": 1_132_830_720,
            reader + r"(query|key)\.norm": 184_320,
            reader + r"fusion.*(key|value)\.linear": 566_415_360,
            reader + r"fusion.*norm": 276_480,
            reader + r"text_norm": 184_320,
            storey + r"feed_forward": 2_642_933_760,
            storey + r"modulation": 552_960,
            rf"heads\.{name}\.table": 6_144,
            rf"(.*parts\.{name}\.|embed\.{name}|heads\.{name})": 5_566_479_552 if name == "video" else 6_094_273_556,
            rf"blocks\.0\..*parts\.{name}\.": 182_546_432,
        }
    return found


def ltx2(later):
    gates = (6_292_992, 3_147_264) if later else (0, 0)
    into_video = r".*readers\.audio_to_video\."
    found = {
        into_video: 1_214_940_672 if later else 1_208_647_680,
        r".*readers\.video_to_audio\.": 1_211_696_640 if later else 1_208_549_376,
        r"exchange\.": 150_001_664,
        r".*bridge\.tables\.video": 983_040,
        r".*bridge\.tables\.audio": 491_520,
        r"(exchange|.*bridge)\.": 150_001_664 + 1_474_560 + (2_426_637_312 if later else 2_417_197_056),
    }
    sizes = {
        "video": (32_514_048, 51_396_608, 17_833_984, 151_031_808 if later else 100_687_872, 528_384, 524_416),
        "audio": (12_062_720, 13_115_392, 4_722_688, 37_767_168 if later else 25_178_112, 264_192, 262_272),
    }
    widths = {"video": (3_222_011_904, 6_443_433_984, 393_216, 8_192), "audio": (805_699_584, 1_611_104_256, 196_608, 4_096)}
    tables = {"video": (1_769_472, 393_216) if later else (1_179_648, 0), "audio": (884_736, 196_608) if later else (589_824, 0)}
    for name, gate in zip(("video", "audio"), gates, strict=True):
        caption, prompt, time_mlp, time_linear, embed, out = sizes[name]
        attention, feed_forward, norms, output = widths[name]
        storey = rf".*storeys\.parts\.{name}\."
        found |= {
            rf"text\.parts\.{name}": 0 if later else caption,
            rf"prompt\.parts\.{name}": prompt if later else 0,
            rf"level\.parts\.{name}\.mlp": time_mlp,
            rf"level\.parts\.{name}\.projection": time_linear,
            rf"embed\.{name}\.": embed,
            rf"heads\.{name}\.linear": out,
            rf"heads\.{name}\.table": output,
            storey + r"attention\.(projections.*qkv|outputs.*linear)": attention,
            storey + r"text\.parts\..*\.(query|key|value|output)\.linear": attention,
            storey + r"attention\..*norm": norms,
            storey + r"text\..*norm": norms,
            storey + r"attention\..*gate": gate,
            storey + r"text\..*gate": gate,
            storey + r"feed_forward": feed_forward,
            storey + r"modulation": tables[name][0],
            storey + r"text\.prompt": tables[name][1],
        }
    video = 13_041_520_768 if not later else None
    if video:
        found |= {rf"(text\.parts|level\.parts|embed|heads|.*storeys\.parts)\.{name}\.": total
                  for name, total in (("video", video), ("audio", 3_265_980_544))}  # fmt: skip
    return found


def mova(experts):
    times = 2 if experts else 1
    high = r"(high\.video\.)?"
    video = r".*storeys\.parts\.video\."
    audio = r".*storeys\.parts\.audio\."
    return {
        rf"({high}embed|embed\.video)": times * 742_400 + 198_144,
        r"(text\.parts\.video|high\.video\.text)": times * 47_196_160,
        r"(level\.parts\.video|high\.video\.level).*mlp": times * 27_535_360,
        r"(level\.parts\.video|high\.video\.level).*projection": times * 157_317_120,
        video + r".*attention\.(projections.*qkv|outputs)": times * 4_195_123_200,
        video + r".*text\.parts\..*\.(query|key|value|output)\.linear": times * 4_195_123_200,
        video + r"(low\.|high\.)?attention\..*norm": times * 409_600,
        video + r"(low\.|high\.)?text\..*norm": times * 409_600,
        video + r"(low\.|high\.)?text_norm": times * 409_600,
        video + r".*feed_forward": times * 5_663_068_160,
        video + r".*modulation": times * 1_228_800,
        r"(heads\.video|high\.video\.head)\.linear": times * 327_744,
        r"(heads\.video|high\.video\.head)\.table": times * 10_240,
        r"embed\.audio": 198_144,
        r"text\.parts\.audio": 8_653_824,
        r"level\.parts\.audio.*mlp": 2_755_584,
        r"level\.parts\.audio.*projection": 14_164_992,
        audio + r"attention\.(projections.*qkv|outputs)": 283_299_840,
        audio + r"text\.parts\..*\.(query|key|value|output)\.linear": 283_299_840,
        audio + r"attention\..*norm": 92_160,
        audio + r"text\..*norm": 92_160,
        audio + r"text_norm": 92_160,
        audio + r"feed_forward": 826_068_480,
        audio + r"modulation": 276_480,
        r"heads\.audio\.linear": 196_736,
        r"heads\.audio\.table": 3_072,
        r"(embed\.audio|heads\.audio|(text|level|.*storeys)\.parts\.audio)": 1_419_193_472,
        r".*bridge": 2_659_737_600,
        r"blocks\.0\.bridge\.(readers\.audio_to_video|norms\.audio)": 68_191_232,
        r"blocks\.0\.bridge\.(readers\.video_to_audio|norms\.video)": 20_466_688,
    }


def magihuman():
    found = {
        r"embed\.video": 988_160,
        r"embed\.audio": 332_800,
        r"text\.": 18_355_200,
        r"heads\..*norm": 10_240,
        r"heads\.video\.linear": 983_040,
        r"heads\.audio\.linear": 327_680,
        layers(0, 4) + "|" + layers(36, 40): 6_548_035_584,
        layers(4, 36): 8_730_386_432,
        r"(?!blocks)": 20_997_120,
    }
    kinds = {0: (3, 314_572_800, 314_572_800, 818_535_168), 4: (1, 139_796_480, 69_898_240, 272_824_576)}
    kinds[36] = (3, 419_389_440, 209_694_720, 818_473_728)
    for layer, (sets, up, down, total) in kinds.items():
        block = rf"blocks\.{layer}\."
        found |= {
            block: total,
            block + r"attention\.projections.*qkv": sets * (26_214_400 + 10_485_760),
            block + r"attention\.outputs.*gate": sets * 204_800,
            block + r"attention\.outputs.*linear": sets * 26_214_400,
            block + r"attention\.projections.*norm": sets * 256,
            block + r"norm[12]": sets * 10_240,
            block + r"feed_forward.*fc1": up,
            block + r"feed_forward.*fc2": down,
        }
    return found


TABLES = {
    ("nava", ""): NAVA,
    ("ovi", ""): ovi(),
    ("ltx2", "2.0"): ltx2(False),
    ("ltx2", "2.3"): ltx2(True),
    ("mova", ""): mova(True),
    ("mova", "active"): mova(False),
    ("magihuman", ""): magihuman(),
}


@pytest.mark.parametrize(("name", "size"), TABLES)
def test_groups(name, size):
    parameters = counted(name, size)
    for pattern, expected in TABLES[name, size].items():
        found = sum(count for key, count in parameters.items() if re.match(pattern, key))
        assert found == expected, f"{pattern}: {found:,}, not {expected:,}"


@pytest.mark.parametrize(
    ("placement", "total"),
    [("full", 2_659_737_600), ("progressive", 1_418_526_720), ("shallow_focus", 886_579_200), ("distributed", 886_579_200)],
)
def test_movas_placements_of_the_bridge(placement, total):
    parameters = counted("mova", "active", **{"bridge.placement": placement})
    assert sum(count for key, count in parameters.items() if ".bridge." in key) == total


def test_arithmetic_of_the_blocks():
    """The closed forms that the table's docstrings name."""
    d, f = 3072, 14336
    attention, feed_forward = 4 * (d * d + d), 2 * d * f + f + d
    assert 2 * attention + 4 * d + 2 * d + feed_forward + 6 * d == 163_656_704  # NAVA's fusion block
    assert 4 * attention + 8 * d + 2 * d + feed_forward + 12 * d == 239_209_472  # its alignment block
    assert 239_209_472 + feed_forward + 2 * d == 327_313_408  # with feed-forward and norm of its own
    assert 163_656_704 + 2 * (d * d + d) + 3 * d == 182_546_432  # Ovi's, exchange included
    d, k = 5120, 1536
    assert 2 * (d * d + d) + 2 * (k * d + d) + 2 * d + 2 * k == 68_191_232  # MOVA's bridge into video
    assert 2 * 14_288_901_184 + 1_419_193_472 + 2_659_737_600 == 32_656_733_440
    assert round(20480 * variants.get("magihuman")().layers.hidden_share) == 20480 * 2 // 3 // 4 * 4 == 13652


def test_what_was_never_released_says_so():
    with pytest.raises(ValueError, match="unified has no published size: it was never released"):
        released(variants.get("unified"))
    with pytest.raises(ValueError, match=r"no published size 9\.9: it was released as 2\.0, 2\.3"):
        released(variants.get("ltx2"), "9.9")


def test_describing_a_published_size_takes_seconds_and_little_memory():
    program = (
        "import resource, sys; from nava_lab.cli import main; main(['describe', 'variant=mova', 'size=published', '--json']);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert '"total": 32656733440' in done.stdout
    assert int(done.stderr.split()[-1]) < 2_000_000  # kilobytes
    assert time.monotonic() - start < 120  # seconds of a busy machine
