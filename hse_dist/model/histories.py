"""Histories of a batch, as a model reads them.

In: offsets and positions among candidates, and what the input dropout hid. Out: what is pooled, user by user.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from hse_dist.model.kernels import owners


@dataclass(frozen=True)
class Histories:
    """Histories of a batch.

    Attributes:
        offsets: int64 [B + 1]. positions: int64 [L] into the candidates.
        shown: bool [L], what the input dropout left; None: all.
        shares: float64 [B], of each user in the loss; 0 where there is no history, else they add up to 1.
    """

    offsets: Tensor
    positions: Tensor
    shown: Tensor | None
    shares: Tensor

    def user(self) -> Tensor:
        """The user of each position, int64 [L]."""
        return owners(self.offsets)

    def pooled(self) -> tuple[Tensor, Tensor]:
        """Positions that the input shows and their users, int64 each."""
        if self.shown is None:
            return self.positions, self.user()
        return self.positions[self.shown], self.user()[self.shown]

    def first(self, users: int) -> Histories:
        """Those of the first users."""
        return self.between(0, users)

    def between(self, first: int, last: int) -> Histories:
        """Those of the users first … last − 1."""
        begin, end = int(self.offsets[first]), int(self.offsets[last])
        shown = None if self.shown is None else self.shown[begin:end]
        offsets = self.offsets[first : last + 1] - begin
        return Histories(offsets, self.positions[begin:end], shown, self.shares[first:last])
