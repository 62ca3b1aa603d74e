"""Gradients of positions that are not live, for the candidates of a batch only.

In: a step's activations after backward. Out: the strongest positions of each candidate row, as `SeenGradients`. Where
rows are used at length 1, gradients are of the row at that length. They come from a sample of the batch's users: their
cost is in proportion, and only which positions are a row's strongest matters.

The full gradient `∂s·u + Xᵀ·∂u` is C × K and is never held. The compiled path makes it in registers
(native/growth.cpp); the plain path in blocks of candidates that fit a memory setting, from which live positions are
taken out. Where user vectors are sparse (wide tables), the first product is a sparse one.

Shapes: B users, C candidates, E live entries, K columns in use, c candidates of a block, e positions kept a row.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from hse_dist.config import GrowSettings
from hse_dist.data.batch import Batch
from hse_dist.model.block import Activations
from hse_dist.model.fused import available
from hse_dist.model.kernels import expand_rows
from hse_dist.model.operators import SparseOperators
from hse_dist.native.library import call
from hse_dist.sparsity.co_occurrence import shared_columns
from hse_dist.sparsity.sightings import Sightings
from hse_dist.tables.block import DenseRows, SparseRows

SPARSE_BELOW = 0.1
"""Density of the user vectors under which their product is a sparse one; measured on CPU, where it breaks even."""

GROUP = 64
"""Columns whose maximum is looked at first: a search for the strongest of all would take longer than the products."""


def strongest_positions(
    activations: Activations, explore: int, memory_bytes: int, block: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """The strongest positions of each candidate that are not live.

    Args:
        activations: of a step that collects, after its backward pass.
        explore: e, positions a candidate.
        memory_bytes: bound of the plain path's blocks of dense gradients; the compiled one makes none.
        block: adjacent columns that are live together: the positions of the ⌈e / block⌉ strongest blocks are given.

    Returns:
        candidate int64 [n], column int64 [n], gradient float32 [n]; positions with gradient 0 are left out.
    """
    operators = activations.operators
    assert isinstance(operators, SparseOperators)
    kept = activations.matrices()
    if available(kept.users):
        candidate, place, gradient = compiled_positions(activations, operators, explore, block)
    else:
        candidate, place, gradient = plain_positions(activations, operators, explore, memory_bytes, block)
    columns = place if operators.kept_columns is None else operators.kept_columns[place]
    return candidate, columns, gradient


def compiled_positions(
    activations: Activations, operators: SparseOperators, explore: int, block: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """`strongest_positions` in one compiled sweep over the columns for blocks of candidates; columns as renumbered."""
    kept, pattern = activations.matrices(), operators.pattern
    dims = pattern.dims - (operators.kept_columns is not None)  # the spare column stands for no column
    count, wanted = pattern.candidates, min(-(-explore // block), dims // block)
    gains = None if operators.gains is None else operators.gains.detach().contiguous()
    places = torch.empty(count, wanted * block, dtype=torch.int32)
    gradients = torch.zeros(count, wanted * block)
    if wanted:
        call(
            "hse_growth", count, dims, activations.users, len(activations.user), wanted, block, torch.get_num_threads(),
            activations.scale, pattern.offsets, pattern.columns.to(torch.int32), activations.positions.contiguous(),
            activations.user.contiguous(), kept.users, kept.grad_users, kept.grad_scores, gains, pattern.dims,
            places, gradients,
        )  # fmt: skip
    found = gradients.view(-1).nonzero().view(-1)
    candidate = found.div(max(wanted * block, 1), rounding_mode="floor")
    return candidate, places.view(-1)[found].long(), gradients.view(-1)[found]


def plain_positions(
    activations: Activations, operators: SparseOperators, explore: int, memory_bytes: int, block: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """`strongest_positions` by dense blocks of candidates; columns as renumbered."""
    kept = activations.matrices()
    users, grad_u, weighted = _matrix(kept.users), kept.grad_users * activations.scale, kept.grad_scores
    weighted = weighted * activations.scale
    if operators.gains is not None:
        weighted = weighted * operators.gains.detach()[:, None]
    histories = _Histories(activations, len(weighted))
    dims, most = len(grad_u), max(len(weighted), 1)
    at_a_time = min(most, max(1, memory_bytes // (2 * grad_u.element_size() * dims)))
    # one buffer for all blocks: memory of this size, taken again and again, would scatter and fault in anew each time
    buffer, parts = grad_u.new_zeros(dims * at_a_time), []
    for first in range(0, most, at_a_time):
        chosen = histories.order[first : first + at_a_time]
        gradient_kc = buffer[: dims * len(chosen)].view(dims, len(chosen))
        gradient_kc.addmm_(users, weighted[chosen].t().contiguous(), beta=0)
        histories.add(gradient_kc, grad_u, first)
        _clear_live(gradient_kc, operators, chosen)
        if block == 1:
            parts.append(_strongest(gradient_kc, explore, chosen))
        else:
            parts.append(_strongest_blocks(gradient_kc, explore, chosen, block))
    candidate, place, gradient = (torch.cat(column) for column in zip(*parts, strict=True))
    return candidate, place, gradient


def _matrix(u_kb: Tensor) -> Tensor:
    """User vectors [K, B], as CSR where they are sparse enough to pay."""
    if int(torch.count_nonzero(u_kb)) >= SPARSE_BELOW * u_kb.numel():
        return u_kb
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return u_kb.to_sparse_csr()


class _Histories:
    """Xᵀ∂u for blocks of candidates; those in a history come first, so that the other blocks need no product.

    Attributes:
        order: int64 [C], the candidates in the order of the blocks.
    """

    def __init__(self, activations: Activations, candidates: int) -> None:
        shown = torch.zeros(candidates, dtype=torch.bool, device=activations.positions.device)
        shown[activations.positions] = True
        self.order = shown.to(torch.int8).argsort(descending=True, stable=True)
        places = torch.empty_like(self.order)
        places[self.order] = torch.arange(candidates, device=places.device)
        self.places, by_place = places[activations.positions].sort()
        self.user = activations.user[by_place]

    def add(self, gradient_kc: Tensor, grad_u: Tensor, first: int) -> None:
        """Add the products of the block of candidates that begins at place `first` of the order, in place."""
        block = torch.tensor([first, first + gradient_kc.shape[1]], device=self.places.device)
        begin, end = torch.searchsorted(self.places, block).tolist()
        if begin < end:
            x_bc = grad_u.new_zeros(grad_u.shape[1], gradient_kc.shape[1])
            x_bc[self.user[begin:end], self.places[begin:end] - first] = 1.0
            gradient_kc.addmm_(grad_u, x_bc)


def _clear_live(gradient_kc: Tensor, operators: SparseOperators, chosen: Tensor) -> None:
    entries, counts = expand_rows(operators.pattern.offsets, chosen)
    local = torch.repeat_interleave(torch.arange(len(chosen), device=chosen.device), counts)
    gradient_kc[operators.pattern.columns[entries], local] = 0.0
    if operators.kept_columns is not None:
        gradient_kc[-1] = 0.0  # the spare column stands for no column


def _strongest(gradient_kc: Tensor, explore: int, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The strongest `explore` of each candidate; they lie in as many groups of columns, those of the largest maxima."""
    dims, count = gradient_kc.shape
    whole = dims // GROUP * GROUP
    groups = [gradient_kc[:whole].view(dims // GROUP, GROUP, count), gradient_kc[None, whole:]]
    maxima = torch.cat([torch.maximum(part.amax(1), -part.amin(1)) for part in groups if part.shape[0] * part.shape[1]])
    group = maxima.t().topk(min(explore, len(maxima)), dim=1, sorted=False).indices
    places = (group[:, :, None] * GROUP + torch.arange(GROUP, device=group.device)).flatten(1)
    outside, candidate = places >= dims, torch.arange(count, device=group.device)[:, None]
    gradients = gradient_kc[places.clamp(max=dims - 1), candidate].masked_fill(outside, 0.0)
    best = gradients.abs().topk(min(explore, places.shape[1]), dim=1, sorted=False).indices
    gradients, places = gradients.gather(1, best), places.gather(1, best)
    kept = gradients != 0
    return chosen[:, None].expand_as(places)[kept], places[kept], gradients[kept]


def _strongest_blocks(gradient_kc: Tensor, explore: int, chosen: Tensor, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """All positions of the strongest blocks of each candidate; renumbered columns are whole blocks, too."""
    dims, count = gradient_kc.shape
    blocks_kbc = gradient_kc[: dims // block * block].view(-1, block, count)
    wanted = min(-(-explore // block), len(blocks_kbc))
    best = blocks_kbc.square().sum(1).t().topk(wanted, dim=1, sorted=False).indices
    places = (best[:, :, None] * block + torch.arange(block, device=best.device)).flatten(1)
    gradients = gradient_kc[places, torch.arange(count, device=best.device)[:, None]]
    kept = gradients != 0
    return chosen[:, None].expand_as(places)[kept], places[kept], gradients[kept]


class GrowthCollector(Sightings):
    """What this rank has seen of positions that are not live; of blocks of columns the strongest blocks' entries."""

    def __init__(self, settings: GrowSettings, block: int = 1) -> None:
        super().__init__()
        self.settings, self.block = settings, block

    def users(self, rows: SparseRows | DenseRows) -> int:
        """Of how many users a step on these rows should keep what growth scores need: as many as are wanted and fit.

        The first of a batch are taken, which is as good as any choice: an epoch's order is random, and follows from
        its seed, so that a resumed run collects what an uninterrupted one would.
        """
        assert isinstance(rows, SparseRows)
        columns = min(rows.dims, len(rows.columns) + 1)
        of_one = rows.values.element_size() * (3 * columns + len(rows.offsets))  # the search turns one matrix around
        return max(1, min(self.settings.collect_users, self.settings.memory_mb * 2**20 // of_one))

    def collect_shared(self, rows: SparseRows | DenseRows, batch: Batch) -> None:
        """Keep the columns of rows that share a history; a row is seen once in each history that has it."""
        assert isinstance(rows, SparseRows)
        users, memory = min(self.settings.collect_users, len(batch.offsets) - 1), self.settings.memory_mb * 2**20
        offsets = batch.offsets[: users + 1]
        positions = batch.positions[: int(offsets[-1])]
        candidate, columns, sums = map(
            torch.from_numpy, shared_columns(rows, offsets, positions, self.settings.explore, memory)
        )
        self.add(batch.candidates.cpu()[candidate], columns, sums, batch.candidates[positions])

    def collect(self, activations: Activations, candidates: Tensor) -> None:
        """Keep the strongest positions of one step's candidates [C]."""
        memory = self.settings.memory_mb * 2**20
        found = strongest_positions(activations, self.settings.explore, memory, self.block)
        candidate, columns, gradients = found if activations.spread is None else activations.spread(*found)
        self.add(candidates[candidate], columns, gradients, candidates)
