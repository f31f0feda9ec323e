"""Loggers of seeds that train together."""

from nava_lab.training.per_seed import SeedLogger
from nava_lab.training.stacked import StackedModule


class Told:
    def __init__(self):
        self.lines = []

    def log_metrics(self, metrics, step):
        self.lines.append((step, dict(metrics)))


def test_a_seeds_logger_is_told_its_own_metrics_until_the_seed_falls():
    inner, fallen, mark = Told(), {}, StackedModule.mark(5)
    logger = SeedLogger(inner, 5, fallen)
    logger.log_metrics({f"{mark}train/loss": 1.0, f"{StackedModule.mark(3)}train/loss": 2.0}, 1)
    fallen[3] = "another seed's loss is nan"
    logger.log_metrics({"lr": 0.1}, 2)
    assert inner.lines == [(1, {"train/loss": 1.0}), (2, {"lr": 0.1})]
    fallen[5] = "the loss is nan"
    logger.log_metrics({f"{mark}validation/loss": float("nan"), "lr": 0.1}, 3)
    assert len(inner.lines) == 2
