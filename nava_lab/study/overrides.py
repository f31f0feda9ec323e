"""What is laid over a study's fields: an edition of its file, and ``KEY=VALUE`` of the command line.

An override that the study would not follow everywhere is refused: a key that a budget, a level or the tuned space sets is not
free to be fixed for all runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nava_lab.registry import nearest
from nava_lab.study.grammar import StudyError, as_mapping, checked_keys, override
from nava_lab.study.layers import bundle, hides, is_bundle, settings_over, with_bundle
from nava_lab.study.space import TUNING_FIELDS

FIELDS = (
    *("fixed", "vary", "seeds", "metric", "budgets", "without", "tuning", "contrasts", "margins", "scaling"),
    *("optional", "editions"),
)
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
            ``budgets.NAME.KEY=VALUE`` (a config key under one budget), or ``KEY=VALUE`` (a config key of all runs;
            ``experiment=NAME`` stands for all keys that its file sets).
        where: names the file in messages.
    """
    from omegaconf import OmegaConf

    changed = {**fields, "fixed": dict(fields.get("fixed") or {})}
    fixed: dict[str, tuple[str, Any]] = {}  # config keys that were given, with the text that did
    bundles: dict[str, tuple[str, Any]] = {}  # the same of options that set several keys
    for text in overrides:
        key, _, raw = text.partition("=")
        value = OmegaConf.to_container(OmegaConf.create(f"value: {raw}"))["value"]  # type: ignore[index, call-overload]
        field, _, inner = key.partition(".")
        if field == "budgets" and inner:
            name, _, held = inner.partition(".")
            named = _budgets(changed, name, text, where)
            if not held:
                raise StudyError(f"{text}: budgets.{name}.KEY=VALUE sets a config key under that budget")
            if is_bundle(held):
                raise StudyError(
                    f"{text}: an option of {held} gives way to every key that {where} sets; give its keys one by one"
                )
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
        elif is_bundle(key):
            bundles[text] = (key, value)
        else:
            changed["fixed"][key] = value
            fixed[text] = (key, value)
    own = [key for key, _ in fixed.values()]
    for text, (group, name) in bundles.items():
        changed["fixed"] = with_bundle(changed["fixed"], group, name, own)
        fixed[text] = (group, name)
        for key, value in bundle(group, name).items():
            if not any(hides(part, None, key, value) for part in own):
                fixed[f"{text} (its {override(key, value)})"] = (key, value)
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
    for part in settings_over(fields):
        if part.place.startswith("budgets.") and text.startswith("budgets."):
            continue
        if hides(part.key, part.value, key, given):
            raise StudyError(f"{text} would be ignored where {where} says {part.place}: {part.remedy.format(key=key)}")
    if told := reserved(key):
        raise StudyError(f"{text} would be ignored: {told}")


def reserved(key: str) -> str:
    """Why a study lets nobody set a key; empty where it does."""
    name = key.lstrip("+~").replace("/", ".")
    return next((told for part, told in RESERVED.items() if name == part or name.startswith(f"{part}.")), "")
