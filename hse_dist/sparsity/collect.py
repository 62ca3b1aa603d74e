"""Gradients of positions that are not live, for the candidates of a batch only.

In: a step's activations after backward. Out: the strongest positions of each candidate row, as triples. Where rows are
used at length 1, gradients are of the row at that length. The full gradient `∂s·u + Xᵀ·∂u` is C × K and is never held:
it is made in blocks of candidates that fit a memory setting, live positions are taken out, and the strongest `explore`
of each row kept. Where user vectors are sparse (wide tables), the first product is a sparse one.

Shapes: B users, C candidates, E live entries, K columns in use, c candidates of a block, e positions kept a row.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from hse_dist.config import RewireSettings
from hse_dist.model.autoencoder import Activations
from hse_dist.model.operators import SparseOperators
from hse_dist.ranks import Ranks
from hse_dist.sparsity.growth import Ints, Triples

SPARSE_BELOW = 0.1
"""Density of the user vectors under which their product is a sparse one; measured on CPU, where it breaks even."""


def strongest_positions(activations: Activations, explore: int, memory_bytes: int) -> tuple[Tensor, Tensor, Tensor]:
    """The strongest positions of each candidate that are not live.

    Args:
        activations: with the gradients of `u_kb` and `scores_cb`.
        explore: e, positions a candidate.
        memory_bytes: bound of the blocks of dense gradients.

    Returns:
        candidate int64 [n], column int64 [n], gradient float32 [n]; positions with gradient 0 are left out.
    """
    operators = activations.operators
    assert isinstance(operators, SparseOperators)
    users = _matrix(torch.cat(activations.u_kb, 1).detach())
    grad_u, weighted = _gradients(activations.u_kb), _gradients(activations.scores_cb)
    if operators.gains is not None:
        weighted = weighted * operators.gains.detach()[:, None]
    histories = _Histories(activations.positions, activations.user, len(weighted), grad_u)
    block = max(1, memory_bytes // (4 * 4 * max(1, operators.pattern.dims)))
    parts = []
    for first in range(0, max(len(weighted), 1), block):
        last = min(first + block, len(weighted))
        gradient_ck = torch.mm(users, weighted[first:last].t()).t() + torch.mm(histories[first:last], grad_u.t())
        _clear_live(gradient_ck, operators, first, last)
        parts.append(_strongest(gradient_ck, explore, first))
    candidate, place, gradient = (torch.cat(column) for column in zip(*parts, strict=True))
    columns = place if operators.kept_columns is None else operators.kept_columns[place]
    return candidate, columns, gradient


def _gradients(parts: list[Tensor]) -> Tensor:
    """The kept gradients of the parts, side by side."""
    gradients = [part.grad for part in parts if part.grad is not None]
    assert len(gradients) == len(parts)
    return torch.cat(gradients, 1)


def _matrix(u_kb: Tensor) -> Tensor:
    """User vectors [K, B], as CSR where they are sparse enough to pay."""
    density = (u_kb != 0).float().mean() if u_kb.numel() else torch.tensor(1.0)
    return _csr(u_kb) if density < SPARSE_BELOW else u_kb


def _csr(matrix: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return matrix.to_sparse_csr()


class _Histories:
    """Xᵀ [C, B] with cheap slices of rows."""

    def __init__(self, candidate: Tensor, user: Tensor, candidates: int, u_kb: Tensor) -> None:
        order = candidate.argsort(stable=True)
        self.user, self.users, self.dtype = user[order], u_kb.shape[1], u_kb.dtype
        ends = torch.bincount(candidate, minlength=candidates).cumsum(0)
        self.offsets = torch.cat([ends.new_zeros(1), ends])

    def __getitem__(self, rows: slice) -> Tensor:
        offsets = self.offsets[rows.start : rows.stop + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        user = self.user[first:last]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(
                offsets - first,
                user,
                torch.ones(len(user), dtype=self.dtype, device=user.device),
                (rows.stop - rows.start, self.users),
                check_invariants=False,
            )


def _clear_live(gradient_ck: Tensor, operators: SparseOperators, first: int, last: int) -> None:
    pattern = operators.pattern
    entries = slice(int(pattern.offsets[first]), int(pattern.offsets[last]))
    gradient_ck[pattern.rows[entries] - first, pattern.columns[entries]] = 0.0
    if operators.kept_columns is not None:
        gradient_ck[:, -1] = 0.0  # the spare column stands for no column


def _strongest(gradient_ck: Tensor, explore: int, first: int) -> tuple[Tensor, Tensor, Tensor]:
    count = min(explore, gradient_ck.shape[1])
    place = gradient_ck.abs().topk(count, dim=1, sorted=False).indices
    gradient = gradient_ck.gather(1, place).flatten()
    candidate = torch.arange(first, first + len(gradient_ck), device=place.device).repeat_interleave(count)
    kept = gradient != 0
    return candidate[kept], place.flatten()[kept], gradient[kept]


class GrowthCollector:
    """What this rank has seen since the last rewire."""

    def __init__(self, settings: RewireSettings) -> None:
        self.settings = settings
        self._steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    def collect(self, activations: Activations, candidates: Tensor) -> None:
        """Keep the strongest positions of one step's candidates [C]."""
        memory = self.settings.memory_mb * 2**20
        candidate, columns, gradients = strongest_positions(activations, self.settings.explore, memory)
        self._steps.append((candidates[candidate].cpu(), columns.cpu(), gradients.cpu(), candidates.cpu()))

    def state_dict(self) -> dict[str, np.ndarray]:
        """What was seen since the last rewire; any ranks may take it up, however it is divided among them."""
        names = ("rows", "columns", "gradients", "visited")
        return {name: part.numpy() for name, part in zip(names, self._seen(), strict=True)}

    def load_state_dict(self, state: dict[str, np.ndarray]) -> None:
        """Add what `state_dict()` of a rank gave."""
        rows, columns, gradients, visited = (
            torch.from_numpy(state[name]) for name in ("rows", "columns", "gradients", "visited")
        )
        self._steps.append((rows, columns, gradients, visited))

    def _seen(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        empty = torch.empty(0, dtype=torch.int64)
        steps = self._steps or [(empty, empty, torch.empty(0), empty)]
        rows, columns, gradients, visited = (torch.cat(column) for column in zip(*steps, strict=True))
        return rows, columns, gradients, visited

    def send_to_owners(self, ranks: Ranks, row_ranges: list[tuple[int, int]]) -> tuple[Triples, Ints]:
        """Hand all that was seen to the rows' owners and forget it.

        Args:
            row_ranges: the half-open range of rows that each rank owns.

        Returns:
            triples and visited rows (one a visit) of the rows that this rank owns.
        """
        rows, columns, gradients, visited = self._seen()
        self._steps = []
        parts = [(rows >= first) & (rows < last) for first, last in row_ranges]
        positions = torch.stack([rows, columns], 1)
        received = _exchange(ranks, [positions[part] for part in parts])
        values = _exchange(ranks, [gradients[part] for part in parts])
        seen = _exchange(ranks, [visited[(visited >= first) & (visited < last)] for first, last in row_ranges])
        return Triples(received[:, 0], received[:, 1], values), seen


def _exchange(ranks: Ranks, parts: list[Tensor]) -> np.ndarray:
    return torch.cat(ranks.exchange([part.to(ranks.device) for part in parts])).cpu().numpy()
