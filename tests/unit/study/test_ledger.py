"""What a study trusts: its own code's trials alone, each point tried once, and a failure that stays with the run it is of."""

import json

import pytest

from nava_lab.study import ledger as ledgers
from nava_lab.study import run as runs
from nava_lab.study import worker as workers
from nava_lab.study.claims import WORKER, this_worker
from nava_lab.study.grammar import StudyError
from nava_lab.study.ledger import VALUE, Ledger, folder_of
from nava_lab.study.spec import read_study
from nava_lab.study.statistics import Tuned, unequal_tuning
from nava_lab.study.worker import Worker

STUDY = """# Does a study trust what it should?
fixed: {world: gaussian, experiment: smoke, variant.depth: 2, budget.parameters: 60_000, logger: none}
vary: {variant: [unified, dual_tower]}
seeds: 1
metric: cross_modal_use
tuning: {space: {training.lr: {low: 1e-3, high: 1e-2, log: true, steps: 2}}, sampler: grid}
"""


@pytest.fixture
def study(tmp_path):
    (tmp_path / "trust.yaml").write_text(STUDY)
    return read_study(tmp_path / "trust.yaml")


def ledger_of(study, root, lease=60.0):
    folder = folder_of(root, study)
    return Ledger(study, folder, str(folder / "journal.log"), lease)


def finish(ledger, value=0.5):
    """Take what is next and end it; its slot, or nothing where nothing is left."""
    task = ledger.next()
    if task is None:
        return None
    if task.phase == "tuning":
        workers.suggest(task.claim, ledger.study.tuning.space)
    for seed in task.seeds:
        task.claim.note(f"{VALUE} {seed}", value)
    task.claim.finish([value])
    return f"{task.phase} {task.point.label}"


def test_trials_of_other_code_are_open_again_and_those_of_an_untouched_variant_are_not(study, tmp_path, monkeypatch):
    first = ledger_of(study, tmp_path)
    done = [finish(first) for _ in range(4)]
    assert all(name.startswith("tuning") for name in done)
    monkeypatch.setattr(ledgers, "variant_fingerprint", lambda name: f"new {name}" if name == "unified" else "same")
    again = ledger_of(study, tmp_path)  # both variants' files are read anew here: both changed
    assert again.result().counts("tuning")["finished"] == 0
    assert again.tell_apart() == "4 of its trials and confirmations were made by other code: none is used"
    assert [finish(again) for _ in range(4)] == done
    monkeypatch.setattr(ledgers, "variant_fingerprint", lambda name: "newer" if name == "unified" else "same")
    third = ledger_of(study, tmp_path)
    assert third.result().counts("tuning") == {"finished": 2, "failed": 0, "running": 0, "pruned": 0, "missing": 2}
    assert [finish(third) for _ in range(5)] == ["tuning variant=unified"] * 2 + [f"confirmation {point.label}" for point in study.points] + [None]  # fmt: skip
    assert third.result().complete
    monkeypatch.setattr(ledgers, "code_fingerprint", lambda: "other")  # halfway through, or after all: everything is open again
    last = ledger_of(study, tmp_path)
    assert last.result().counts()["finished"] == 0
    assert {run.code for run in third.result().runs} != {run.code for run in last.result().runs}
    assert last.retry_failed() == 0


def test_other_code_that_is_still_at_the_study_is_an_error(study, tmp_path, monkeypatch):
    first = ledger_of(study, tmp_path, lease=0.6)
    task = first.next()
    elsewhere = "elsewhere|1|2"  # a worker of another machine, of which only its beat tells
    first.storage.set_trial_user_attr(task.claim._id, WORKER, elsewhere)
    monkeypatch.setattr(ledgers, "code_fingerprint", lambda: "other")
    second = ledger_of(study, tmp_path, lease=0.6)
    assert second.tell_apart() == ""  # silent: dead for all that can be seen
    with task.claim, pytest.raises(StudyError, match=r"is being worked at with other code \(elsewhere.*same revision"):
        second.tell_apart()
    assert this_worker() != elsewhere


def test_a_point_that_was_tuned_and_confirmed_by_different_code_is_not_ranked():
    tuned = {"a": Tuned(3, codes=("c0de-1", "c0de-2")), "b": Tuned(3, codes=("c0de-1",))}
    assert unequal_tuning(tuned) == ["a was tuned and confirmed by different code (c0de-1, c0de-2)"]


SPACE = """tuning:
  space: {variant.align_fraction: [0, 0.5, 1], variant.placement: [early, late, sandwich]}
  trials: 9
  sampler: """


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_every_trial_is_a_point_of_its_own_also_of_a_study_that_was_killed(tmp_path, monkeypatch, sampler):
    """Nine trials of nine points: the samplers themselves draw four to six different ones."""
    text = STUDY.replace("variant: [unified, dual_tower]", "variant: [align_then_fuse]").partition("tuning:")[0] + SPACE + sampler
    (tmp_path / "points.yaml").write_text(text)
    study = read_study(tmp_path / "points.yaml")
    tried, given_up = [], []
    for number in range(12):
        ledger = ledger_of(study, tmp_path)  # a new process each time: it knows what the storage knows
        task = ledger.next()
        if task is None or task.phase != "tuning":
            break
        point = workers.suggest(task.claim, study.tuning.space)
        if number in (3, 7):  # killed in the middle of it
            ledger.storage.set_trial_user_attr(task.claim._id, WORKER, this_worker().rpartition("|")[0] + "|never")
            given_up.append((task.claim.slot, point))
            continue
        tried.append((task.claim.slot, point))
        value = float(point["variant.align_fraction"])
        task.claim.finish([value, 1.0] if sampler == "nsga2" else [value])
    assert len(tried) == 9
    assert len({tuple(point.items()) for _, point in tried}) == 9
    assert all(part in tried for part in given_up)  # the same slot goes on at the same point
    names = {str(study.overrides(study.points[0], 10_000, point)) for _, point in tried}
    assert len(names) == 9


def test_more_trials_than_points_are_an_error(tmp_path):
    text = STUDY.partition("tuning:")[0] + SPACE.replace("9", "10") + "tpe"
    (tmp_path / "points.yaml").write_text(text)
    with pytest.raises(StudyError, match=r"points.yaml: tuning.trials=10: the space has 9 points, and none is tried twice"):
        read_study(tmp_path / "points.yaml")


def test_no_pruner_ends_a_trial_within_its_warm_up(study, tmp_path):
    ledger = ledger_of(study, tmp_path)
    task = ledger.next()
    asked = []
    task.claim.trial.should_prune = lambda: asked.append(True) or True
    judge = Worker(ledger, print)._judge(task, 0, 100)
    assert [judge(step, 1.0) for step in (10, 29, 30, 100)] == [False, False, True, True]
    assert len(asked) == 2


@pytest.mark.parametrize("error", [TypeError("2 arguments"), KeyError("video"), AssertionError()])
def test_whatever_a_block_raises_fails_its_own_slot_and_the_others_go_on(study, tmp_path, monkeypatch, error):
    asked = []

    def run(config, tell, watchers):
        asked.append(config.variant.name)
        if config.variant.name == "unified":
            raise error
        folder = tmp_path / runs.run_name(config.resolved, config.world.data_version())
        folder.mkdir(exist_ok=True)
        (folder / "record.json").write_text(json.dumps({"schema": 1, "scores": {"cross_modal_use": {"value": 0.5}}}))

    monkeypatch.setattr(workers, "run", run)
    ledger, told = ledger_of(study, tmp_path), []
    Worker(ledger, told.append).work()
    result = ledger.write()
    assert result.complete
    assert result.counts() == {"finished": 3, "failed": 3, "running": 0, "pruned": 0, "missing": 0}
    assert sorted(asked) == ["dual_tower"] * 3 + ["unified"] * 2
    assert any(type(error).__name__ in line for line in told)
    assert {type(error).__name__ in run.error for run in result.runs if run.state == "failed" and run.phase == "tuning"} == {True}


def test_an_unforeseen_error_leaves_its_traceback_and_an_ended_trial_nothing(tmp_path):
    with pytest.raises(KeyError), runs.failures_written(tmp_path, None):
        {}["video"]
    left = json.loads((tmp_path / "failed.json").read_text())
    assert (left["error"], left["kind"]) == ("KeyError: 'video'", "KeyError")
    assert "in test_an_unforeseen" in left["traceback"]
    with pytest.raises(runs.EndedEarly), runs.failures_written(tmp_path, None):
        raise runs.EndedEarly
    with pytest.raises(KeyboardInterrupt), runs.failures_written(tmp_path, None):
        raise KeyboardInterrupt
    assert not (tmp_path / "failed.json").exists()
