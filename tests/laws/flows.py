"""Flows whose answers are known, for the laws of solvers, schedules and guidance. All in float64."""

import torch

from nava_lab.flow.solvers.base import Solver
from nava_lab.registry import solvers


def tensors(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(mean, variance):
    """The exact velocity of data N(mean, diag(variance)), one law for every modality, and where it carries a point."""

    def velocity(x, levels):
        found = {}
        for name, part in x.items():
            t = levels[name]
            seen = (1 - t) ** 2 * variance + t**2
            found[name] = -mean + (t - (1 - t) * variance) / seen * (part - (1 - t) * mean)
        return found

    def exact(x, start, end):
        scale = ((1 - end) ** 2 * variance + end**2) / ((1 - start) ** 2 * variance + start**2)
        return (1 - end) * mean + scale.sqrt() * (x - (1 - start) * mean)

    return velocity, exact


def coupled(t_seed=0):
    """A smooth field in which each modality's velocity depends on the other's tokens and level: x1' = f(x2, t1, t2)."""
    a, b = tensors(t_seed, 5), tensors(t_seed + 1, 5)

    def velocity(x, levels):
        one, two = x["video"], x["audio"]
        t, s = levels["video"], levels["audio"]
        return {
            "video": torch.sin(two.mean(1, keepdim=True) * a) + (t - 0.3 * s) * one,
            "audio": torch.cos(one.mean(1, keepdim=True) * b) + (s**2 + 0.2 * t) * two,
        }

    return velocity


def point_mass(point):
    """All data in one point: the velocity is (x - point) / t."""
    return lambda x, levels: {name: (part - point) / levels[name] for name, part in x.items()}


def every_solver() -> list[tuple[str, Solver, int]]:
    """(label, solver, its order without noise) of every registered solver, at its defaults and its examples."""
    found = []
    for name in solvers:
        cls = solvers.get(name)
        for settings, order in (({}, cls.order), *cls.examples):
            label = name + "".join(f" {key}={value}" for key, value in settings.items())
            found.append((label, cls(**settings), order))
    return found


def row(start, end, steps):
    return torch.linspace(start, end, steps + 1, dtype=torch.float64)
