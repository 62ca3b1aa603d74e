"""What a rank saw of positions in the steps before a rewire, on its way to the owners of their rows.

In: rows, columns and a number each, and the rows that were looked at, step by step. Out: all that the ranks together
saw of the rows that this rank owns. Any rank may take up what another one saw: owners add in canonical order.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hse_dist.ranks import Ranks
from hse_dist.sparsity.growth import Ints, SeenGradients

NAMES = ("rows", "columns", "gradients", "visited")


def check_positions(state: dict[str, np.ndarray], rows: int, dims: int) -> None:
    """Check what a checkpoint says was seen of a table: where it grows, it becomes column numbers.

    Raises:
        ValueError: it is of other types, of unequal lengths, not finite, or beyond `rows` and `dims`.
    """
    for key in (name for name in state if name.endswith(NAMES[1]) and name.removesuffix(NAMES[1]) + NAMES[0] in state):
        prefix = key.removesuffix(NAMES[1])
        *whole, numbers = (state[prefix + name] for name in (NAMES[0], NAMES[1], NAMES[3], NAMES[2]))
        for part, most in zip(whole, (rows, dims, rows), strict=True):
            if part.dtype != np.int64 or part.ndim != 1 or part.min(initial=0) < 0 or part.max(initial=0) >= most:
                raise ValueError(f"{prefix}rows, columns or visited are no positions of a table of {rows} × {dims}")
        if numbers.dtype != np.float32 or not np.isfinite(numbers).all():
            raise ValueError(f"{prefix}gradients are not finite numbers")
        if not len(whole[0]) == len(whole[1]) == len(numbers):
            raise ValueError(f"{prefix}rows, columns and gradients do not belong together")


class Sightings:
    """Since the last rewire; 20 bytes a position and step.

    Args:
        prefix: of the names in its state.
    """

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix
        self._steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def add(self, rows: Tensor, columns: Tensor, gradients: Tensor, visited: Tensor) -> None:
        """Keep what one step saw: rows, columns int64 [n], gradients float32 [n]; rows that it looked at int64 [C]."""
        self._steps.append((rows.cpu(), columns.cpu(), gradients.cpu(), visited.cpu()))

    def state_dict(self) -> dict[str, np.ndarray]:
        """What was seen since the last rewire; any ranks may take it up, however it is divided among them."""
        return {self.prefix + name: part.numpy() for name, part in zip(NAMES, self._seen(), strict=True)}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Add what `state_dict()` of a rank gave; nothing where it has none of this kind."""
        if self.prefix + NAMES[0] in state:
            rows, columns, gradients, visited = (torch.from_numpy(state[self.prefix + name]) for name in NAMES)
            self._steps.append((rows, columns, gradients, visited))

    def _seen(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        empty = torch.empty(0, dtype=torch.int64)
        steps = self._steps or [(empty, empty, torch.empty(0), empty)]
        rows, columns, gradients, visited = (torch.cat(column) for column in zip(*steps, strict=True))
        return rows, columns, gradients, visited

    def send_to_owners(self, ranks: Ranks, row_ranges: list[tuple[int, int]]) -> tuple[SeenGradients, Ints]:
        """Hand all that was seen to the rows' owners and forget it.

        Args:
            row_ranges: the half-open range of rows that each rank owns.

        Returns:
            gradients and visited rows (one a visit) of the rows that this rank owns.
        """
        rows, columns, gradients, visited = self._seen()
        self._steps = []
        parts = [(rows >= first) & (rows < last) for first, last in row_ranges]
        positions = torch.stack([rows, columns], 1)
        received = _exchange(ranks, [positions[part] for part in parts])
        values = _exchange(ranks, [gradients[part] for part in parts])
        seen = _exchange(ranks, [visited[(visited >= first) & (visited < last)] for first, last in row_ranges])
        return SeenGradients(received[:, 0], received[:, 1], values), seen


def _exchange(ranks: Ranks, parts: list[Tensor]) -> np.ndarray:
    return torch.cat(ranks.exchange([part.to(ranks.device) for part in parts])).cpu().numpy()
