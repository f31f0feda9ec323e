"""What the page holds, without a browser: commands that repeat its runs, clips that fit, figures that say what they show."""

import shlex
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from nava_lab.config import load
from nava_lab.report import previews
from nava_lab.report.again import commands, overrides, study_commands
from nava_lab.report.compare import compare
from nava_lab.report.figures import figures, looks
from nava_lab.report.page import write_page
from nava_lab.report.plotting import INK, for_page, marker_path
from nava_lab.report.runs import find_runs
from nava_lab.study.conduct import Wish, read
from nava_lab.study.identity import run_hash
from nava_lab.study.ledger import folder_of
from nava_lab.study.results import load_study
from nava_lab.study.spec import Origin, read_study
from nava_lab.study.statistics import Effect
from nava_lab.study.storage import repeatable
from tests.unit.report.made import FIELDS, make_run, make_runs, make_study


@pytest.mark.parametrize(
    "said",
    [
        ("variant=dual_tower", "training.lr=0.001", "budget.parameters=300000"),
        ("variant=unified", "world=gaussian", "world.rho=0.5", "flow.coupling=independent"),
        (
            "variant=unified",
            "evaluation/solver=churn",
            "evaluation.solver.churn=4.0",
            "evaluation.guidance.text=3",
            "flow.shifts.audio=3.0",
        ),
        ("variant=unified", "flow.first_step.video=0.2", "attention.window_s=0.2", "world=clips", "clips.path=a folder"),
    ],
)
def test_a_printed_command_makes_the_very_run(said):
    """Read as a shell reads it, its config has the run's own hash."""
    made = load([*said, "seed=3"]).resolved
    words = overrides(made)
    assert words is not None
    again = load([*shlex.split(shlex.join(words)), "seed=3"]).resolved
    assert run_hash(again, "data") == run_hash(made, "data")
    assert len(words) <= len(said) + 1  # nothing that is the default anyway


def test_a_config_of_another_version_has_no_command(tmp_path):
    made = {**load([]).resolved, "training": {"steps": 4, "no_longer_known": 1}}
    assert overrides(made) is None


def test_seeds_share_a_command(tmp_path):
    make_runs(tmp_path, {"dual_tower": 0.8, "unified": 0.7}, seeds=3)
    runs, _ = find_runs([tmp_path])
    assert commands(runs) == ["nava train -m variant=dual_tower seed=0,1,2", "nava train -m variant=unified seed=0,1,2"]


def test_a_studys_page_holds_what_conducts_it_again(tmp_path):
    """The printed command and the saved file ask for the very points, seeds and tuning; the command for the same folder."""
    file = tmp_path / "depth ratio.yaml"
    editions = {"editions": {"cpu": {"seeds": 1, "vary": {"variant.align_fraction": [0.0, 1.0]}}}}
    file.write_text("# How much of the depth should align?\n" + yaml.safe_dump({**FIELDS, **editions}, sort_keys=False))
    asked = read_study(file, "cpu", ["budgets=parameters", "tuning.trials=2", "training.weight_decay=1e-05"])
    folder = make_study(tmp_path, asked.source, origin=asked.origin, question=asked.question)
    page = Blocks(Path(write_page(compare([folder]), tmp_path / "page")).read_text())
    first, second = (line for line in page.pre if line.startswith("nava study"))
    name, _, edition, *overrides = shlex.split(first)[2:]
    again, root = read(Wish(Path(name), tuple(overrides), edition))
    assert root == tmp_path
    assert folder_of(tmp_path, again) == folder_of(tmp_path, asked)
    (text,) = (block for block in page.pre if block.startswith("# How much"))
    saved = tmp_path / shlex.split(second)[2]
    saved.write_text(text)
    from_file = read_study(saved)
    assert (from_file.points, from_file.seeds, from_file.tuning) == (asked.points, asked.seeds, asked.tuning)
    assert from_file.source == asked.source


class Blocks(HTMLParser):
    """What stands in a page's ``pre`` elements."""

    def __init__(self, text):
        super().__init__()
        self.pre, self.inside = [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "pre":
            self.pre.append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "pre"

    def handle_data(self, data):
        if self.inside:
            self.pre[-1] += data


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn")
    made = {}
    make_runs(root / "families", {"dual_tower": 0.80, "unified": 0.70}, seeds=2)
    made["families"] = compare([root / "families"])
    made["study"] = compare([make_study(root / "study")])
    return {name: (found, figures(found)) for name, found in made.items()}


def test_a_study_is_repeated_where_its_runs_and_its_storage_are(tmp_path, monkeypatch):
    """Elsewhere nothing of it would be found, and all of it made again; a password is written nowhere."""
    monkeypatch.chdir(tmp_path)
    origin = Origin("sweeps/front.yaml", ("seeds=8",), storage=repeatable("postgresql://me:secret@host:5432/db?password=x&ssl=1"))
    folder = make_study(tmp_path / "far off", origin=origin)
    study = load_study(folder).study
    place = "--storage 'postgresql://me@host:5432/db?ssl=1'"
    assert study_commands(study, tmp_path / "runs") == [
        f"nava study sweeps/front.yaml --edition cpu seeds=8 {place}",
        f"nava study depth_ratio.yaml {place}",
    ]
    assert study_commands(replace(study, origin=Origin()), Path("runs")) == ["nava study depth_ratio.yaml"]
    page = write_page(compare([folder]), tmp_path / "page").read_text()
    assert "save it as <code>depth_ratio.yaml</code>" in page
    assert f"output.root={tmp_path}/far off" in unescape(page)
    assert "The storage&#39;s password is left out" in page or "The storage's password is left out" in page
    assert "secret" not in page


@pytest.mark.parametrize(
    ("place", "kept"),
    [
        ("", ""),
        ("some/journal.log", "some/journal.log"),
        ("mysql+pymysql://host/db", "mysql+pymysql://host/db"),
        ("postgresql://me:p@ss@host/db", "postgresql://me@host/db"),
        ("postgresql://me@host/db?passwd=a&b=c", "postgresql://me@host/db?b=c"),
    ],
)
def test_a_storage_is_written_down_without_its_password(place, kept):
    assert read(Wish(Path("sweeps/clock.yaml"), edition="cpu", storage=place))[0].origin.storage == kept


def test_every_figure_that_the_numbers_allow_is_drawn(drawn):
    names = {name: [figure.name for figure in shown] for name, (_, shown) in drawn.items()}
    assert names["families"] == ["scores", "against_flops", "curves", "offsets"]
    assert names["study"] == ["scores", "against_variant_align_fraction", "curves", "offsets", "importance"]


def test_figures_say_their_numbers_and_take_the_pages_colours(drawn):
    found, shown = drawn["families"]
    scores = shown[0]
    assert f"dual_tower {found.over_seeds()[0].mean:.3f}" in scores.alt
    for figure in shown:
        svg = for_page(figure)
        assert "currentColor" in svg
        assert INK not in svg
        assert svg.count("<svg") == 1
        assert figure.png.startswith(b"\x89PNG")
        marks = [part.split('"')[0] for part in svg.split(' id="')[1:]]
        assert all(mark.startswith(f"{figure.name}-") for mark in marks)  # so that two figures share a page


@pytest.mark.parametrize(("value", "exact", "dashed"), [(0.1, True, True), (0.1, False, False), (0.8, True, False)])
def test_chance_is_drawn_for_any_score_whose_metric_says_where_it_is(tmp_path, value, exact, dashed):
    scores = {"binding_kappa": {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 64}}
    said = {"headline": "binding_kappa", "scores": scores, "exact": ["binding_kappa"] if exact else []}
    runs = [make_run(tmp_path, 0, value, (f"variant={name}",), **said) for name in ("unified", "dual_tower")]
    assert ("stroke-dasharray" in figures(compare(runs))[0].svg) == dashed


def test_what_chance_explains_in_tuning_is_said(drawn):
    found, shown = drawn["study"]
    assert "Nothing stands out of it" not in shown[-1].note
    assert "by chance up to" in shown[-1].alt
    extra = {**found.extra, "importance": {"training.lr": Effect(0.4, 0.5)}}
    noise = figures(replace(found, extra=extra))[-1]
    assert noise.title == "What mattered in tuning: nothing beyond chance"
    assert noise.note.endswith("Nothing stands out of it.")


def test_colours_and_marks_stay_with_names_and_differ(drawn, tmp_path):
    found, _ = drawn["families"]
    style = looks(found)
    assert style == looks(compare([run.folder for run in reversed(found.runs)]))
    assert len({look.colour for look in style.values()}) == len({look.marker for look in style.values()}) == 2
    many = [make_run(tmp_path, 0, 0.5, ("variant=unified", f"variant.depth={depth}")) for depth in range(1, 11)]
    assert len({look.colour for look in looks(compare(many)).values()}) == 10


def test_the_front_holds_what_nothing_beats_in_both(drawn):
    against = next(figure for figure in drawn["families"][1] if figure.name == "against_flops")
    assert against.note.endswith("Nothing beats dual_tower in both.")  # cheaper and better


def test_markers_become_paths():
    for marker in "osD^v":
        path = marker_path(marker)
        assert path.startswith("M")
        assert "Z" in path


def test_clips_are_of_one_seed_and_fit_the_page(tmp_path, monkeypatch):
    runs = make_runs(tmp_path, {"dual_tower": 0.8, "unified": 0.7}, seeds=2)
    for run in runs[1:]:  # dual_tower has none of seed 0
        (run / "previews").mkdir()
        for clip in range(3):
            for suffix in ("mp4", "png"):
                (run / "previews" / f"clip_{clip}.{suffix}").write_bytes(b"x" * 1000)
    found = previews.tiles(compare([tmp_path]))
    assert (found.seed, found.clips, len(found.tiles), found.fewer) == (1, 3, 6, "")
    monkeypatch.setattr(previews, "MOST_BYTES", 5000)
    assert previews.tiles(compare([tmp_path])).clips == 1
    monkeypatch.setattr(previews, "MOST_BYTES", 2500)
    few = previews.tiles(compare([tmp_path]))
    assert len(few.tiles) == 1
    assert few.fewer.startswith("1 variant")


def test_what_a_name_holds_stays_text(tmp_path):
    run = make_run(tmp_path, 0, 0.5, variant="<script>alert(1)</script>")
    page = Path(write_page(compare([run]), tmp_path / "page")).read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert {path.name for path in (tmp_path / "page").iterdir()} >= {
        "runs.csv",
        "runs.parquet",
        "scores.png",
        "scores.svg",
        "curves.png",
    }
