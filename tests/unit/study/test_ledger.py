"""What a study trusts: its own code's trials alone, each point tried once, and a failure that stays with the run it is of."""

import json
import shutil
import threading
import time

import optuna
import pytest
from optuna.trial import TrialState

from nava_lab.cli import main
from nava_lab.config import loading
from nava_lab.registry import PACKAGE, worlds
from nava_lab.study import claims
from nava_lab.study import ledger as ledgers
from nava_lab.study import run as runs
from nava_lab.study import tuning as tunings
from nava_lab.study import worker as workers
from nava_lab.study.claims import WORKER, this_worker
from nava_lab.study.grammar import StudyError
from nava_lab.study.ledger import VALUE, Ledger, folder_of
from nava_lab.study.plan import Plan
from nava_lab.study.space import tuning_of
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
    assert again.tell_apart() == "of its trials and confirmations, 4 with other code were made: none is used"
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


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """A copy of the checkout's YAML files, to be edited."""
    monkeypatch.setattr(loading, "CONFIGS", tmp_path / "configs")
    return shutil.copytree(PACKAGE.parent / "configs", tmp_path / "configs")


def edit(configs):
    smoke = configs / "experiment" / "smoke.yaml"
    smoke.write_text(smoke.read_text().replace("training:\n", "training:\n  warmup: 0.3\n"))


def other_data(monkeypatch):
    monkeypatch.setattr(worlds.get("gaussian"), "data_version", lambda self: "newer files")


@pytest.mark.parametrize("change", ["config", "data"])
def test_trials_of_another_config_or_other_data_are_open_again(study, tmp_path, monkeypatch, configs, change):
    """An experiment's file that the study names was edited, or files were added to a folder of clips."""
    first = ledger_of(study, tmp_path)
    done = [finish(first) for _ in range(5)]
    assert ledger_of(study, tmp_path).result().counts("tuning")["finished"] == 4
    edit(configs) if change == "config" else other_data(monkeypatch)
    again = ledger_of(study, tmp_path)
    assert again.tell_apart() == ("of its trials and confirmations, 5 with another config or other data were made: none is used")
    assert again.result().counts()["finished"] == 0
    assert [finish(again) for _ in range(5)] == done


def test_what_tuning_or_the_machine_settles_is_no_other_config(study, tmp_path, monkeypatch, configs):
    """The learning rate is tuned, and a worker may be shown one of a machine's GPUs alone."""
    first = ledger_of(study, tmp_path)
    done = finish(first)
    smoke = configs / "experiment" / "smoke.yaml"
    smoke.write_text(smoke.read_text().replace("training:\n", "training:\n  lr: 0.5\n"))
    settled = loading.settled
    monkeypatch.setattr(loading, "settled", lambda machine: {**settled(machine), "devices": 4})
    assert done == "tuning variant=unified"
    assert ledger_of(study, tmp_path).result().counts("tuning")["finished"] == 1


def test_a_worker_notices_that_the_config_was_changed_under_it(study, tmp_path, monkeypatch, configs):
    def run(config, tell, watchers):
        raise AssertionError("trained by another config than its slot says")

    monkeypatch.setattr(workers, "run", run)
    ledger = ledger_of(study, tmp_path)
    ledger.result()
    edit(configs)
    with pytest.raises(StudyError, match=r"config or the data of variant=unified have changed since this worker began"):
        Worker(ledger, print).work()
    assert ledger.result().counts() == {"finished": 0, "failed": 0, "running": 0, "pruned": 0, "missing": 6}


def test_a_finished_slot_whose_run_is_gone_is_open_again(study, tmp_path, monkeypatch):
    trained = []

    def run(config, tell, watchers):
        folder = tmp_path / runs.run_name(config.resolved, config.world.data_version())
        trained.append(folder.name)
        folder.mkdir()
        (folder / "identity.json").write_text(json.dumps(runs.identify(config)))
        value = trained.index(folder.name) + 0.5 * (trained.count(folder.name) - 1)  # made again, it comes out a little better
        (folder / "record.json").write_text(json.dumps({"schema": 1, "scores": {"cross_modal_use": {"value": value}}}))

    monkeypatch.setattr(workers, "run", run)
    Worker(ledger_of(study, tmp_path), print).work()
    first = list(trained)
    assert len(first) == 6
    gone = [tmp_path / name for name in (first[0], first[-1])]  # of a tuning and of a confirmation
    for folder in gone:
        shutil.rmtree(folder)
    ledger = ledger_of(study, tmp_path)
    assert ledger.gone() == 2
    assert ledger.result().counts()["finished"] == 3  # what is not tuned is not confirmed
    assert [run.value for run in ledger.result().runs if run.state == "missing" and run.phase == "tuning"] == [None]
    Worker(ledger, print).work()
    assert trained == first + [folder.name for folder in gone]
    assert ledger.result().complete
    assert sorted(run.value for run in ledger.result().runs) == [0.5, 1, 2, 3, 4, 5.5]  # what came out now
    Worker(ledger_of(study, tmp_path), print).work()
    assert len(trained) == 8


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


class Nothing:
    """A lock on a file system that keeps nobody out, as of two machines that share none."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_no_two_workers_try_one_point_where_locks_of_files_do_nothing(tmp_path, monkeypatch):
    text = (
        STUDY.replace("variant: [unified, dual_tower]", "variant: [align_then_fuse]").partition("tuning:")[0] + SPACE + "random"
    )
    (tmp_path / "points.yaml").write_text(text)
    study = read_study(tmp_path / "points.yaml")

    def same(claim, asked):
        time.sleep(0.2)  # as long as a sampler may think
        return {"variant.align_fraction": 0.5, "variant.placement": "late"}

    monkeypatch.setattr(claims, "FileLock", Nothing)
    monkeypatch.setattr(tunings, "_proposed", same)
    monkeypatch.setattr(tunings, "DRAWS", 2)
    tasks = [ledger_of(study, tmp_path).next() for _ in range(3)]
    found = []
    threads = [
        threading.Thread(target=lambda task: found.append(workers.suggest(task.claim, study.tuning.space)), args=(task,))
        for task in tasks
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len({tuple(point.items()) for point in found}) == len(tasks)
    assert same(None, None) in found
    assert ledger_of(study, tmp_path).foreign() == []  # the turn is nobody's trial


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_a_pruner_ends_what_is_worse_and_never_what_leads(pruner):
    """Sixteen trials whose losses fall alike from levels in a shuffled order, validated five times each."""
    fields = {"space": {"training.lr": [*range(1, 17)]}, "trials": 16, "pruner": pruner, "metric": "validation/loss"}
    tuning = tuning_of(fields, "here", "loss")
    assert tunings.prunes_little(tuning) == ""
    made = tunings.tuning_study(optuna.storages.InMemoryStorage(), "s", tuning)
    levels, best, ended = [7, 3, 12, 9, 1, 15, 5, 11, 0, 14, 8, 2, 13, 6, 10, 4], 99, []
    for level in levels:
        trial = made.ask()
        for step in range(100, 600, 100):
            trial.report(level + 1 / step, step)
            if trial.should_prune():
                ended.append(level)
                made.tell(trial, state=TrialState.PRUNED)
                break
        else:
            made.tell(trial, level)
        assert level > best or level not in ended  # whatever leads goes on
        best = min(best, level)
    assert len(ended) >= 6
    assert levels[0] not in ended  # it had nothing to be worse than
    assert sum(ended) / len(ended) > sum(levels) / len(levels)


def test_a_pruner_that_comes_too_late_is_told_in_the_plan(tmp_path):
    def told(pruner, trials):
        by = f"sampler: random, trials: {trials}, pruner: {pruner}, metric: validation/loss"
        text = STUDY.replace("steps: 2}}, sampler: grid", "steps: 2}}, " + by)
        (tmp_path / "late.yaml").write_text(text)
        return Plan(read_study(tmp_path / "late.yaml"), ()).warnings[:-1]

    assert told("median", 5) == [
        "pruner median ends nothing before 4 trials have ended, and a point has 5: set pruner: none, or more trials "
        "(of a grid, more cells)"
    ]
    assert "before 1 trial has ended, and a point has 2:" in told("halving", 2)[0]
    assert told("none", 2) == told("median", 6) == told("halving", 3) == []


def test_a_study_with_failed_runs_does_not_end_with_zero(tmp_path, monkeypatch, capsys):
    """As ``train -m`` does not; what is finished is told all the same."""

    def run(config, tell, watchers):
        raise ValueError("broken")

    monkeypatch.setattr(workers, "run", run)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trust.yaml").write_text(STUDY)
    with pytest.raises(SystemExit) as ended:
        main(["study", "trust.yaml"])
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert "6 failed" in told.out
    assert "nava: 6 of 6 runs failed: --retry-failed tries them again" in told.err


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


def test_a_score_that_is_not_defined_fails_its_slot_and_says_so(study, tmp_path):
    """As whatever is raised does: see above."""
    worker, folder = Worker(ledger_of(study, tmp_path), print), tmp_path / "unified-gaussian-s0"
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps({"schema": 1, "scores": {"cross_modal_use": {"value": None}}}))
    with pytest.raises(
        ValueError, match="cross_modal_use is not defined for unified-gaussian-s0: its clips hold nothing to count"
    ):
        worker._judged_by(worker.ledger.next(), folder)


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
