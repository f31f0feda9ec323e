"""What lies over what in a study: ``fixed``, then its budget, then the level of each axis, then what is tuned.

Of two settings of one key the later one holds, so the earlier one would be said and not done: that is refused. An option of a
group of YAML files (``experiment=smoke``) gives way to every single key, wherever that is set.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nava_lab import config
from nava_lab.registry import nearest
from nava_lab.study.grammar import StudyError, override

ORDER = ("fixed", "budgets", "vary", "tuning")


@dataclass(frozen=True)
class Setting:
    """One key where a study sets it.

    Attributes:
        place: where, as a reader would look it up.
        key: the config key.
        value: what it is set to; None where it takes several.
        remedy: what to do instead of setting it anew; ``{key}`` stands for the key.
        grid: of ``vary``, which of its grids, and
        axis: which axis: the levels of one axis never meet.
    """

    place: str
    key: str
    value: Any
    remedy: str = ""
    grid: int = 0
    axis: str = ""

    @property
    def layer(self) -> int:
        return ORDER.index(self.place.split(".")[0])

    def over(self, other: Setting) -> bool:
        """Whether some run has both, and this one holds."""
        if self.layer == other.layer == ORDER.index("vary"):
            return self.grid == other.grid and self.axis != other.axis
        return self.layer > other.layer


def settings_over(fields: Mapping[str, Any]) -> Iterator[Setting]:
    """Everything that is laid over what is fixed."""
    budgets = fields.get("budgets")
    for name, held in budgets.items() if isinstance(budgets, Mapping) else ():
        remedy = f"give budgets.{name}.{{key}}=VALUE, or leave that budget out with budgets=NAME"
        for key, value in held.items() if isinstance(held, Mapping) else ():
            yield Setting(f"budgets.{name}.{key}", key, value, remedy)
    vary = fields.get("vary")
    for number, grid in enumerate(vary if isinstance(vary, list) else [vary]):
        for axis, levels in grid.items() if isinstance(grid, Mapping) else ():
            if isinstance(levels, Mapping):
                for name, settings in levels.items():
                    for key, value in settings.items() if isinstance(settings, Mapping) else ():
                        yield Setting(f"vary.{axis}.{name}.{key}", key, value, "edit the level there", number, axis)
            else:
                values = levels if isinstance(levels, list) else []
                mapping = next((value for value in values if isinstance(value, Mapping)), None)
                yield Setting(f"vary.{axis}", axis, mapping, "it varies {key}, so it cannot be fixed", number, axis)
    tuning = fields.get("tuning")
    space = tuning.get("space") if isinstance(tuning, Mapping) else None
    for key in space if isinstance(space, Mapping) else ():
        remedy = "edit the space there, or give tuning=null with it to tune nothing"
        yield Setting(f"tuning.space.{key}", key, None, remedy)


def check_layers(fields: Mapping[str, Any], where: str) -> None:
    """Refuse what a study's file says in one place and hides by another."""
    fixed = fields.get("fixed")
    found = [Setting(f"fixed.{key}", key, value) for key, value in fixed.items()] if isinstance(fixed, Mapping) else []
    found += settings_over(fields)
    for below in found:
        for above in found:
            if above.over(below) and hides(above.key, above.value, below.key, below.value):
                raise StudyError(f"{where}: {below.place} would be ignored where {above.place} holds: leave one of them out")
            if above.over(below) and not is_bundle(below.key):
                for key, value in _options(above, fields):
                    if hides(below.key, below.value, key, value):
                        raise StudyError(
                            f"{where}: {above.place} would set {override(key, value)}, and {below.place} holds instead: leave it "
                            "out there"
                        )


def _options(setting: Setting, fields: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What the options of a group set that are chosen at one place."""
    if not is_bundle(setting.key):
        return
    several: Any = [setting.value]
    if setting.place == f"vary.{setting.axis}":
        vary = fields["vary"]
        several = (vary[setting.grid] if isinstance(vary, list) else vary)[setting.axis]
    elif setting.layer == ORDER.index("tuning"):
        several = fields["tuning"]["space"][setting.key]
    for name in several if isinstance(several, list) else []:
        yield from bundle(setting.key, name).items()


def is_bundle(key: str) -> bool:
    """Whether a key chooses among YAML files, each of which sets several keys."""
    folder = config.CONFIGS / _plain(key)
    return bool(key) and "." not in _plain(key) and folder.is_dir()


def bundle(group: str, name: Any) -> dict[str, Any]:
    """What an option of such a group sets, key by key."""
    from omegaconf import OmegaConf

    group, folder = _plain(group), config.CONFIGS / _plain(group)
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    if name is None:
        return {}
    if name not in known:
        raise StudyError(f"{group}={name}: {nearest(str(name), known)}")
    file = folder / f"{name}.yaml"
    held: Any = OmegaConf.to_container(OmegaConf.load(file)) or {}
    everywhere = "@package _global_" in file.read_text(encoding="utf-8")
    found: dict[str, Any] = {}
    for part in held.pop("defaults", []):
        found |= {key.split()[-1].lstrip("/"): value for key, value in part.items()} if isinstance(part, Mapping) else {}
    return found | dict(_leaves(held, "" if everywhere else group))


def _leaves(value: Any, at: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _leaves(part, f"{at}.{key}" if at else str(key))
    elif at:
        yield at, value


def hides(setting: str, value: Any, key: str, given: Any) -> bool:
    """Whether a setting that comes later replaces a key that was given, or a part of it: ``a.b`` is a part of ``a={b: 1}``."""
    first, later = _plain(key), _plain(setting)
    if first == later:
        return True
    inner, outer, held = (later, first, given) if len(later) > len(first) else (first, later, value)
    return inner.startswith(f"{outer}.") and isinstance(held, Mapping)


def _plain(key: str) -> str:
    return key.lstrip("+~").replace("/", ".")


def with_bundle(fixed: Mapping[str, Any], group: str, name: Any, but: Sequence[str]) -> dict[str, Any]:
    """What is fixed, with an option of a group on top: its keys hold over those that stand there, ``but`` for some."""
    made = {**fixed, group: name}
    for key, value in bundle(group, name).items():
        there = [other for other, held in fixed.items() if hides(other, held, key, value)]
        if there and not any(hides(other, None, key, value) for other in but):
            made = {other: held for other, held in made.items() if other != key} | {key: value}
    return made
