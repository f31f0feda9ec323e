"""What all runs of a point rest on besides its code: their whole resolved config, and the data."""

from __future__ import annotations

import hashlib
from typing import Any

from omegaconf import OmegaConf

from nava_lab.config import composed, typed
from nava_lab.study.identity import run_hash
from nava_lab.study.spec import Point, Study


def basis_of(study: Study, point: Point) -> str:
    """A hash of a point's resolved config and data version as they are now, with every option that tuning lists.

    Seed and tuned values of single keys are told by a slot itself. How many devices "auto" stands for is left open, for
    a worker may be shown one of a machine's GPUs alone; which kind of device, and which precision, is not.
    """
    space = study.tuning.space if study.tuning else ()
    listed = [part.values if part.values and "." not in part.key else part.ends()[:1] for part in space]
    found = []
    for number in range(max(map(len, listed), default=1)):
        tuned = {part.key: values[number % len(values)] for part, values in zip(space, listed, strict=True)}
        asked = composed(study.overrides(point, 0, tuned))
        config = typed(asked)
        plain: Any = OmegaConf.to_container(asked, resolve=True)
        machine = {**config.resolved["trainer"], "devices": plain["trainer"]["devices"]}
        found.append(run_hash({**config.resolved, "trainer": machine}, config.world.data_version()))
    return hashlib.sha256("-".join(found).encode()).hexdigest()[:12]
