"""What is laid over a study's fields: an edition of its file, and ``KEY=VALUE`` of the command line.

An override that the study would not follow everywhere is refused: a key that a budget, a level or the tuned space sets is not
free to be fixed for all runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nava_lab.registry import nearest
from nava_lab.study.grammar import StudyError, as_mapping, checked_keys
from nava_lab.study.space import TUNING_FIELDS

FIELDS = ("fixed", "vary", "seeds", "metric", "budgets", "tuning", "contrasts", "margins", "scaling", "optional", "editions")
# What a study sets in every run itself, and where that is said instead.
RESERVED = {
    "seed": "seeds=N gives the seeds",
    "evaluation.split": "tuning is scored on the validation split and confirmation on the test split",
    "output": "output.root=FOLDER of the command line says where runs are kept",
}


def merged(fields: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """An edition laid over the fields: mappings of settings are merged, everything else is replaced."""
    checked_keys(changes, tuple(part for part in FIELDS if part != "editions"), where)
    made = dict(fields)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(made.get(key), Mapping)
        made[key] = {**made[key], **value} if both and key in ("fixed", "tuning", "margins") else value
    return made


def overridden(fields: Mapping[str, Any], overrides: Sequence[str], where: str) -> dict[str, Any]:
    """The fields as the command line changes them.

    Args:
        fields: of the study, edition included.
        overrides: ``seeds=3``, ``metric=loss``, ``tuning.FIELD=VALUE``, ``budgets=NAME`` (those budgets alone),
            ``budgets.NAME.KEY=VALUE`` (a config key under one budget), or ``KEY=VALUE`` (a config key of all runs).
        where: names the file in messages.
    """
    from omegaconf import OmegaConf

    changed = {**fields, "fixed": dict(fields.get("fixed") or {})}
    fixed: dict[str, tuple[str, Any]] = {}  # config keys that were given, with the text that did
    for text in overrides:
        key, _, raw = text.partition("=")
        value = OmegaConf.to_container(OmegaConf.create(f"value: {raw}"))["value"]  # type: ignore[index, call-overload]
        field, _, inner = key.partition(".")
        if field == "budgets" and inner:
            name, _, held = inner.partition(".")
            named = _budgets(changed, name, text, where)
            if not held:
                raise StudyError(f"{text}: budgets.{name}.KEY=VALUE sets a config key under that budget")
            changed["budgets"] = {**named, name: {**as_mapping(named[name] or {}, f"{where}: budgets.{name}"), held: value}}
            fixed[text] = (held, value)
        elif field == "budgets":
            wanted = [part.strip() for part in raw.strip("[]").split(",")]
            changed["budgets"] = {name: _budgets(changed, name, text, where)[name] for name in wanted}
        elif field == "tuning" and inner:
            checked_keys({inner: value}, TUNING_FIELDS, text)
            changed["tuning"] = {**as_mapping(changed.get("tuning") or {}, f"{where}: tuning"), inner: value}
        elif field in ("seeds", "metric", "tuning") and not inner:
            changed[field] = value
        elif field in FIELDS:
            raise StudyError(f"{text}: edit {field} in {where}; seeds, metric, budgets and tuning.* can be given here")
        else:
            changed["fixed"][key] = value
            fixed[text] = (key, value)
    for text, (key, value) in fixed.items():
        _check_free(text, key, value, changed, where)
    return changed


def _budgets(fields: Mapping[str, Any], name: str, text: str, where: str) -> dict[str, Any]:
    """The budgets, of which ``name`` must be one."""
    named = as_mapping(fields.get("budgets") or {}, f"{where}: budgets")
    if name not in named:
        raise StudyError(f"{text}: {where} has no budget {name}; {nearest(name, list(named)) if named else 'it has none'}")
    return named


def _check_free(text: str, key: str, given: Any, fields: Mapping[str, Any], where: str) -> None:
    """Refuse an override that some runs would not follow, naming what they follow instead."""
    for place, setting, value, remedy in _set_elsewhere(fields):
        if place.startswith("budgets.") and text.startswith("budgets."):
            continue
        if _hides(setting, value, key, given):
            raise StudyError(f"{text} would be ignored where {where} says {place}: {remedy.format(key=key)}")
    if told := reserved(key):
        raise StudyError(f"{text} would be ignored: {told}")


def _set_elsewhere(fields: Mapping[str, Any]) -> Iterator[tuple[str, str, Any, str]]:
    """(place, key, value, remedy) of everything that is laid over what is fixed."""
    budgets = fields.get("budgets")
    for name, held in budgets.items() if isinstance(budgets, Mapping) else ():
        for key, value in held.items() if isinstance(held, Mapping) else ():
            yield (
                f"budgets.{name}.{key}",
                key,
                value,
                f"give budgets.{name}.{{key}}=VALUE, or leave that budget out with budgets=NAME",
            )
    vary = fields.get("vary")
    for grid in vary if isinstance(vary, list) else [vary]:
        for axis, levels in grid.items() if isinstance(grid, Mapping) else ():
            if isinstance(levels, Mapping):
                for name, settings in levels.items():
                    for key, value in settings.items() if isinstance(settings, Mapping) else ():
                        yield f"vary.{axis}.{name}.{key}", key, value, "edit the level there"
            else:
                values = levels if isinstance(levels, list) else []
                mapping = next((value for value in values if isinstance(value, Mapping)), None)
                yield f"vary.{axis}", axis, mapping, "it varies {key}, so it cannot be fixed"
    tuning = fields.get("tuning")
    space = tuning.get("space") if isinstance(tuning, Mapping) else None
    for key in space if isinstance(space, Mapping) else ():
        yield f"tuning.space.{key}", key, None, "edit the space there, or give tuning=null with it to tune nothing"


def _hides(setting: str, value: Any, key: str, given: Any) -> bool:
    """Whether a setting that comes later replaces a key that was given, or a part of it: ``a.b`` is a part of ``a={b: 1}``."""
    first, later = (name.lstrip("+~").replace("/", ".") for name in (key, setting))
    if first == later:
        return True
    inner, outer, held = (later, first, given) if len(later) > len(first) else (first, later, value)
    return inner.startswith(f"{outer}.") and isinstance(held, Mapping)


def reserved(key: str) -> str:
    """Why a study lets nobody set a key; empty where it does."""
    name = key.lstrip("+~").replace("/", ".")
    return next((told for part, told in RESERVED.items() if name == part or name.startswith(f"{part}.")), "")
