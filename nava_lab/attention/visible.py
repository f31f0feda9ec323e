"""Who sees whom between two rows of tokens, in whichever form a backend wants it; each form is made at most once.

Shape letters: b batch, q queries, k keys, s samples of one pair of lengths in a packed row, m and n their tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nava_lab.attention.masks import Mask
from nava_lab.attention.tokens import Tokens

T = TypeVar("T")
AT_ONCE = 2**24  # entries of a table that are worth keeping; of a larger one only what is asked of it is made
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (line, head, query, key) -> may it see


class Visible:
    """A table of who sees whom, and what follows from it.

    Args:
        table: ``b q k``, where an axis along which nothing changes may have length 1; None where everything is seen.
        shape: the numbers of queries and keys.
        clean: whether keys that nobody sees are known to hold finite values.
    """

    def __init__(self, table: Bool[Tensor, "_ _ _"] | None, shape: tuple[int, int], clean: bool = False):
        self.table = table
        self.shape = shape
        self.clean = clean
        self.made: dict[object, Any] = {}  # forms that a backend asks for by a key of its own

    @staticmethod
    def of(mask: Mask, queries: Tokens, keys: Tokens, clean: bool = False) -> Visible | None:
        """What ``mask`` allows between two rows; None where it is known beforehand to allow everything, of something."""
        answer = mask.allows(_first(queries), _first(keys))
        if isinstance(answer, bool) and answer and len(keys):
            return None
        return Ruled(mask, queries, keys, clean)

    @property
    def dense(self) -> Bool[Tensor, "_ q k"] | None:
        """The whole table."""
        return None if self.table is None else self.table.expand(-1, *self.shape)

    def once(self, key: object, make: Callable[[], T]) -> T:
        """What ``make`` makes, made at the first call."""
        if key not in self.made:
            self.made[key] = make()
        return self.made[key]

    @property
    def sees(self) -> Bool[Tensor, "_ _ 1"]:
        """Queries that see anything at all."""
        return self.once("sees", self._sees)

    def _sees(self) -> Tensor:
        if self.table is None or not self.shape[1]:
            return torch.full((1, 1, 1), self.shape[1] > 0, device=self.device)
        return self.table.any(-1, keepdim=True)

    @property
    def device(self) -> torch.device | None:
        return None if self.table is None else self.table.device

    def recall(self, asked: Iterable[Hashable]) -> None:
        """Make what another table was found to be asked for (the keys of its ``made``)."""
        for key in asked:
            if isinstance(key, tuple) and key[0] == "additive":
                self.additive(*key[1:])
            elif key in ("sees", "unseen", "table", "groups"):
                getattr(self, str(key))

    @property
    def unseen(self) -> Bool[Tensor, "_ _"] | None:
        """Keys that no query sees and that may hold anything, NaN too; None where there is no such key."""
        return None if self.clean else self.once("unseen", self._unseen)

    def _unseen(self) -> Tensor | None:
        return None if self.table is None else ~self.table.any(1)

    def additive(self, dtype: torch.dtype, lift_blind: bool) -> Float[Tensor, "_ _ k"] | None:
        """The table as what is added to logits: 0, or minus infinity where nothing is seen.

        Args:
            dtype: of the logits.
            lift_blind: 0 all along the row of a query that sees nothing, for kernels that cannot take such a row.
        """
        if self.table is None:
            return None
        return self.once(("additive", dtype, lift_blind), lambda: self._additive(dtype, lift_blind))

    def _additive(self, dtype: torch.dtype, lift_blind: bool) -> Tensor:
        hidden = ~self.table & self.sees if lift_blind else ~self.table
        hidden = hidden.expand(-1, -1, self.shape[1])
        return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(hidden, float("-inf"))

    def mask_mod(self) -> MaskMod:
        """The same for a single pair, as flex attention asks."""
        if self.table is None:
            return lambda line, head, query, key: query >= 0
        table = self.dense.contiguous()
        if table.shape[0] == 1:
            return lambda line, head, query, key: table[0][query, key]
        return lambda line, head, query, key: table[line, query, key]

    @property
    def lines(self) -> int:
        """1 where all samples of the batch have the same table, else their number."""
        return 1 if self.table is None else self.table.shape[0]

    @property
    def groups(self) -> list[Group] | None:
        """The samples of a packed row by their lengths; None for a row that is not packed."""
        return None


@dataclass(frozen=True)
class Group:
    """Samples of a packed row that have the same numbers of queries and of keys.

    Attributes:
        queries: ``s m``, their places in the row of queries.
        keys: ``s n``, their places in the row of keys.
        visible: who sees whom within them; None where everyone does.
    """

    queries: Int[Tensor, "s m"]
    keys: Int[Tensor, "s n"]
    visible: Visible | None


class Ruled(Visible):
    """What a mask allows between two rows; the table is only made where a backend asks for it."""

    def __init__(self, mask: Mask, queries: Tokens, keys: Tokens, clean: bool):
        self.mask, self.queries, self.keys = mask, queries, keys
        self.shape, self.clean = (len(queries), len(keys)), clean
        self.made = {}

    @property
    def table(self) -> Tensor | None:  # type: ignore[override]
        return self.once("table", lambda: self.mask.table(self.queries, self.keys))

    @property
    def device(self) -> torch.device:
        return self.keys.modality.device

    def _unseen(self) -> Tensor | None:
        if self.groups is None:
            return super()._unseen()
        seen = torch.zeros(self.shape[1], dtype=torch.bool, device=self.device)
        for group in self.groups:
            if group.keys.numel():
                hidden = None if group.visible is None else group.visible.unseen
                seen[group.keys] = True if hidden is None else ~hidden.expand(group.keys.shape)
        return ~seen.unsqueeze(0)

    def mask_mod(self) -> MaskMod:
        queries, keys, mask = self.queries.flat(), self.keys.flat(), self.mask
        # `query < 0` is never so: it makes a tensor of a plain answer.
        return lambda line, head, query, key: (query < 0) | mask.allows(queries.at(line, query), keys.at(line, key))

    @property
    def lines(self) -> int:
        answer = self.mask.allows(_first(self.queries).down(), _first(self.keys).across())
        return 1 if isinstance(answer, bool) else answer.shape[0]

    def hides(self, leaf: Mask) -> bool:
        """Whether one of the mask's rules hides anything between these two rows, as far as it is known beforehand."""
        answer = leaf.allows(_first(self.queries), _first(self.keys))
        return not (isinstance(answer, bool) and answer)

    def _sees(self) -> Tensor:
        if self.groups is None:
            if "table" in self.made or self.shape[0] * self.shape[1] <= AT_ONCE:
                return super()._sees()
            rows = max(1, AT_ONCE // self.shape[1])  # slice by slice: the whole table of a long row never lies in memory
            slices = [self.queries.slice(start, start + rows) for start in range(0, self.shape[0], rows)]
            tables = [self.mask.dense(part, self.keys) for part in slices]
            if any(table is None for table in tables):
                return torch.ones((1, 1, 1), dtype=torch.bool, device=self.device)
            return torch.cat([table.any(-1, keepdim=True) for table in tables if table is not None], 1)
        found = torch.zeros(self.shape[0], dtype=torch.bool, device=self.device)  # sample by sample: no table of the whole row
        for group in self.groups:
            if group.keys.numel():
                found[group.queries] = (
                    True if group.visible is None else group.visible.sees.squeeze(-1).expand(group.queries.shape)
                )
        return found.view(1, -1, 1)

    @property
    def groups(self) -> list[Group] | None:
        return self.once("groups", self._groups)

    def _groups(self) -> list[Group] | None:
        queries, keys = self.queries.lengths, self.keys.lengths
        if queries is None or keys is None:
            return None
        device = self.keys.modality.device
        made = []
        for samples in _by_lengths(queries, keys):
            rows = torch.tensor([places(queries, sample) for sample in samples], device=device)
            columns = torch.tensor([places(keys, sample) for sample in samples], device=device, dtype=torch.long)
            columns = columns.view(len(samples), -1)
            inner = Visible.of(self.mask, self.queries.pick(rows), self.keys.pick(columns), self.clean)
            made.append(Group(rows, columns, inner))
        return made


def _first(tokens: Tokens) -> Tokens:
    """One token's facts: enough to learn whether a rule answers a plain True."""
    return tokens._each(lambda fact: fact[:, :1])


def places(lengths: tuple[tuple[int, ...], ...], sample: int) -> list[int]:
    """Where the tokens of a sample lie in a packed row of one or several modalities."""
    found: list[int] = []
    start = 0
    for counts in lengths:
        if counts:
            before = start + sum(counts[:sample])
            found += range(before, before + counts[sample])
        start += sum(counts)
    return found


def _by_lengths(queries: tuple[tuple[int, ...], ...], keys: tuple[tuple[int, ...], ...]) -> Iterator[list[int]]:
    """Samples that ask anything, grouped by their numbers of queries and keys."""
    samples = max(len(counts) for counts in (*queries, *keys))
    groups: dict[tuple[int, int], list[int]] = {}
    for sample in range(samples):
        pair = tuple(sum(counts[sample] for counts in side if counts) for side in (queries, keys))
        if pair[0]:
            groups.setdefault(pair, []).append(sample)  # type: ignore[arg-type]
    yield from groups.values()
