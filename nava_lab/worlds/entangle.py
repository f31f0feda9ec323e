"""World ``entangle``: text says what (colour, timbre, count), never when; does more text cost timing?

    time      0.0       0.5       1.0       1.5       2.0 s
    video     . . . R + . . . . . . R + . . . . R + . . .     three red flashes
    audio     ......h\\..............h\\...........h\\.......    as a horn; any colour goes with any timbre
    text      "3 red disc horn"                               4 words
              "3 so well red now disc like here horn ..."     the same among words that say nothing: 16 or 64 in all

Some pairs of colour and timbre never occur in training; half of the test clips have one of them. Where what and when are
separate skills, sync does not depend on how long the text is nor on how hard guidance pulls towards it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nava_lab.conditioning.text import PAD
from nava_lab.registry import worlds
from nava_lab.rng import uniform
from nava_lab.streams import onto
from nava_lab.worlds.base import levels
from nava_lab.worlds.staged import Script, Staged, of_kind

FILLER = ("so", "well", "now", "here", "like", "then", "just", "quite", "maybe", "still", "even", "oh", "yes", "and", "or")
CONTENT = 4  # words that say something: count, colour, "disc", timbre


@worlds.register("entangle")
@dataclass(frozen=True)
class EntangleWorld(Staged):
    """Flashes with sounds whose colour, timbre and number the text sets.

    Attributes:
        classes: colours, and as many timbres (3 to 8).
        lengths: words of a caption, at least 4; each clip has one of these lengths, equally likely.
        held_out: so many timbres per colour never go with it in training.
        density: mean events per second.
    """

    classes: int = 4
    lengths: list[int] = field(default_factory=lambda: [4, 16, 64])
    held_out: int = 1
    density: float = 1.5

    version = "entangle-1"
    metrics = ("sync", "semantics", "entanglement", "events", "loss", "legacy")
    headline = "sync_auc"
    mastery = ("semantics_kappa",)  # more classes are more to realise, and no other times
    LEVELS = levels(classes=(3, 4, 6))

    def __post_init__(self) -> None:
        if not 3 <= self.classes <= 8:
            raise ValueError(f"world.classes={self.classes} must lie between 3 and 8")
        if not 0 <= self.held_out <= self.classes - 2:
            raise ValueError(f"world.held_out={self.held_out} must lie between 0 and classes - 2 = {self.classes - 2}")
        if not self.lengths or min(self.lengths) < CONTENT or len(set(self.lengths)) < len(self.lengths):
            raise ValueError(f"world.lengths={list(self.lengths)} must be different numbers of at least {CONTENT}")
        super().__post_init__()

    @property
    def most(self) -> int:
        return self.counting(self.density).most

    @property
    def _numbers(self) -> list[str]:
        return [str(number) for number in range(self.most + 1)]

    @property
    def vocabulary(self) -> tuple[Sequence[str], int]:
        return [*self._numbers, *self.scene.colours, "disc", *self.scene.timbre_names, *FILLER], max(self.lengths)

    def script(self, split: str, index: Tensor) -> Script:
        numbers = uniform(self.seed(split, "clip"), index, 5)
        counts = self.counts(numbers[:, 0], self.density)
        colour = (numbers[:, 1] * self.classes).long()
        # Timbre minus colour, modulo the classes: 1 to held_out are held out, 0 and those above are for training.
        held = (numbers[:, 3] < 0.5) & (split == "test") & (self.held_out > 0)
        free = (numbers[:, 2] * (self.classes - self.held_out)).long()
        step = torch.where(held, 1 + (numbers[:, 2] * self.held_out).long(), torch.where(free > 0, free + self.held_out, 0))
        timbre = (colour + step) % self.classes
        length = onto(torch.tensor(list(self.lengths)), index.device)[(numbers[:, 4] * len(self.lengths)).long()]
        moments = self.moments(split, index, counts, self.most)
        return Script(
            of_kind(moments, colour),
            of_kind(moments, timbre),
            self._words(split, index, (counts, colour, timbre), length),
            {"colour": colour, "timbre": timbre, "count": counts, "held_out": held, "text_tokens": length},
        )

    def _words(self, split: str, index: Tensor, what: tuple[Tensor, Tensor, Tensor], length: Tensor) -> Tensor:
        """The four words that say something, in order, at any places among fillers."""
        spelled, (counts, colour, timbre) = self.tokenizer.spelled, what
        content = torch.stack(
            (
                spelled(self._numbers, counts),
                spelled(self.scene.colours, colour),
                spelled(["disc"], torch.zeros_like(colour)),
                spelled(self.scene.timbre_names, timbre),
            ),
            -1,
        )
        longest = max(self.lengths)
        draws = uniform(self.seed(split, "words"), index, 2 * longest)
        beyond = torch.arange(longest, device=index.device) >= length.unsqueeze(-1)
        places = draws[:, :longest].masked_fill(beyond, 2.0).argsort(1)[:, :CONTENT].sort(1).values
        filler = spelled(FILLER, (draws[:, longest:] * len(FILLER)).long()).masked_fill(beyond, PAD)
        return filler.scatter(1, places, content)
