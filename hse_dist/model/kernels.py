"""The three autograd functions of the step, on CSR blocks with rows of any length.

In: a CSR block of candidate rows. Out: user vectors, scores, and their gradients, at a cost of live entries × users.
Why own functions: `embedding_bag` is the fastest forward product found, but its own backward is an order of magnitude
slower than a sampled product for the values and a second `embedding_bag`, over the entries by column, for the users.
User vectors are kept transposed ([D, B]), the way both products read them. Gathers are `index_select`: on a CPU it
takes a third of the time of advanced indexing.

Shapes: B users, C candidates, D columns, E live entries, L history positions, P pooled entries (live entries of the
history positions, with repeats).
"""

from __future__ import annotations

import warnings
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

SMALLEST_SQUARE = 1e-12
"""Of the length of a user's scores; below it they have no direction."""


def owners(offsets: Tensor) -> Tensor:
    """The row of each entry, int64 [E], where row r has the entries offsets[r] … offsets[r + 1] − 1."""
    return torch.repeat_interleave(torch.arange(len(offsets) - 1, device=offsets.device), offsets.diff())


def expand_rows(offsets: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of the rows `positions` [L], one row after the other.

    Returns:
        entries int64 [P], and how many each position has, int64 [L].
    """
    first = offsets[positions]
    counts = offsets[positions + 1] - first
    starts = counts.cumsum(0) - counts
    total = int(starts[-1] + counts[-1]) if len(positions) else 0
    entries = torch.repeat_interleave(first - starts, counts, output_size=total)
    return entries.add_(torch.arange(total, device=offsets.device)), counts


class Pool(Function):
    """u[b] = Σ over the history of b of the rows' live entries, as uᵀ [D, B]."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, entries: Tensor, target: Tensor, dims: int, users: int) -> Tensor:
        """values [E]; entries [P]; target int64 [P]: column · B + user of each pooled entry."""
        ctx.save_for_backward(entries, target)
        ctx.size = len(values)
        pooled = values.new_zeros(dims * users).index_add_(0, target, values.index_select(0, entries))
        return pooled.view(dims, users)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        entries, target = ctx.saved_tensors
        taken = grad.contiguous().view(-1).index_select(0, target)
        return grad.new_zeros(ctx.size).index_add_(0, entries, taken), None, None, None, None


class Strongest(Function):
    """The `count` entries of each user vector that are largest in size; the others are 0 (HSE, Van Balen & Goethals,
    WWW 2021, bounds user vectors so). Of equal ones the lower column stays.

    The gradient passes straight through, to what was left out too: an entry that is too weak today can still become
    strong. (Hoefler et al., arXiv 2102.00554, on ephemeral sparsity; Bengio et al., arXiv 1308.3432.)
    """

    @staticmethod
    def forward(ctx: Any, u_db: Tensor, count: int) -> Tensor:
        """u_db [D, B]."""
        if count >= len(u_db):
            return u_db.clone()
        sizes = u_db.abs()
        weakest = sizes.topk(count, dim=0).values[-1]
        above, tied = sizes > weakest, sizes == weakest
        room = count - above.sum(0)
        return u_db * (above | (tied & (tied.cumsum(0) <= room)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, None


class Pattern:
    """Which entries of a [C, D] matrix are live, by rows and, when a backward pass asks for it, by columns.

    Args:
        offsets: int64 [C + 1]. columns: int64 [E]. dims: D.
    """

    def __init__(self, offsets: Tensor, columns: Tensor, dims: int) -> None:
        self.offsets, self.columns, self.dims = offsets, columns, dims
        self.candidates = len(offsets) - 1
        self._ordered: tuple[Tensor, Tensor] | None = None

    @cached_property
    def rows(self) -> Tensor:
        """Row of each entry, int64 [E]."""
        return owners(self.offsets)

    @cached_property
    def by_column(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row of each entry [E] and its place in the order of rows [E], both by column; column offsets [D + 1]."""
        # a narrower key sorts in half the time
        keys = self.columns.to(torch.int16 if self.dims <= 2**15 else torch.int32)
        order = keys.argsort(stable=True)
        ends = torch.bincount(self.columns, minlength=self.dims).cumsum(0)
        return self.rows.index_select(0, order), order, torch.cat([ends.new_zeros(1), ends])

    def values_by_column(self, values: Tensor) -> Tensor:
        """`values` [E] by column; kept for the next block of users, which has the same values."""
        # autograd hands the same memory out as a new tensor each time
        if self._ordered is None or self._ordered[0].data_ptr() != values.data_ptr():
            self._ordered = (values, values.index_select(0, self.by_column[1]))
        return self._ordered[1]

    def row_sums(self, per_entry: Tensor) -> Tensor:
        """The sum of `per_entry` [E] over each row, [C]."""
        return per_entry.new_zeros(self.candidates).index_add(0, self.rows, per_entry)


class Score(Function):
    """scores[c, b] = Σ over the live entries of c of value · u[column, b], [C, B]."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, pattern: Pattern, u_db: Tensor) -> Tensor:
        """values [E]; u_db [D, B]."""
        ctx.save_for_backward(values, u_db)
        ctx.pattern = pattern
        return weighted_sums(pattern.columns, pattern.offsets, values, u_db)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, u_db = ctx.saved_tensors
        pattern, grad = ctx.pattern, grad.contiguous()
        rows, _, offsets = pattern.by_column
        grad_u = weighted_sums(rows, offsets, pattern.values_by_column(values), grad)
        return sampled_products(pattern, grad, u_db), None, grad_u


def sampled_products(pattern: Pattern, left_cb: Tensor, right_db: Tensor) -> Tensor:
    """out[e] = left[row of e] · right[column of e], float [E]: a dense product at the live entries only."""
    rows, columns = pattern.rows, pattern.columns
    if not left_cb.numel():
        return left_cb.new_zeros(len(columns))
    if len(columns) > pattern.candidates * pattern.dims:
        # more entries than a matrix of distinct ones could have (all in the spare column of a compacted block):
        # torch refuses such a pattern
        return (left_cb[rows] * right_db[columns]).sum(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        live = torch.sparse_csr_tensor(
            pattern.offsets,
            columns,
            left_cb.new_zeros(len(columns)),
            (pattern.candidates, pattern.dims),
            check_invariants=False,
        )
    return torch.sparse.sampled_addmm(live, left_cb, right_db.t(), beta=0.0).values()


def weighted_sums(index: Tensor, offsets: Tensor, weights: Tensor, source: Tensor) -> Tensor:
    """out[r] = Σ over e in offsets[r] … offsets[r + 1] of weights[e] · source[index[e]]; [rows, B]."""
    if not len(offsets) - 1 or not source.shape[1]:
        return source.new_zeros(len(offsets) - 1, source.shape[1])
    return F.embedding_bag(index, source, offsets, per_sample_weights=weights, mode="sum", include_last_offset=True)


def column_products(left: Tensor, right: Tensor, block: int = 256) -> Tensor:
    """Σ over rows of left · right for each column, [B]; on a CPU in blocks that stay in the cache.

    An einsum of the same is a product of matrices of one column each, and took 25 times as long (17 000 × 128).
    """
    if left.device.type != "cpu":
        return (left * right).sum(0)  # a launch a block would take longer than the sum
    total = left.new_zeros(left.shape[1])
    for one, other in zip(left.split(block), right.split(block), strict=True):
        total += (one * other).sum(0)
    return total


def column_squares(matrix: Tensor) -> Tensor:
    """Σ over rows of matrix² for each column, [B]."""
    return column_products(matrix, matrix)


class CosineLoss(Function):
    """Weighted mean over users of 2 − 2·cos(score, history), without a dense history.

    The cosine follows from Σ score², the scores at the history, and the history's length. At history positions the
    score is first reduced by `own`, the item's own contribution (EASE's zero diagonal); it is corrected in the sums,
    so that the score matrix is read twice and never rewritten. NMSE of ELSA (Vančura et al. 2022, §3) up to a constant.
    """

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, own: Tensor, positions: Tensor, user: Tensor, shares: Tensor, clip: float | None
    ) -> Tensor:
        """scores [C, B]; own [L]; positions [L] into C; user [L] into B; shares float64 [B] of the users."""
        flat = positions * scores.shape[1] + user
        raw = scores.reshape(-1)[flat]
        hit = raw - own
        bounded, hit_bounded, raw_bounded = (x if clip is None else x.clamp(-clip, clip) for x in (scores, hit, raw))
        length = torch.bincount(user, minlength=scores.shape[1]).to(scores.dtype)
        zeros = scores.new_zeros(scores.shape[1])
        squares = column_squares(bounded).index_add(0, user, hit_bounded.square() - raw_bounded.square())
        # scores that are all zero have no direction: such a user counts in the loss and has no gradient
        still = squares <= SMALLEST_SQUARE
        norm = squares.masked_fill(still, 1.0).sqrt()
        inner = zeros.index_add(0, user, hit_bounded).masked_fill(still, 0.0)
        cosine = inner / (norm * length.clamp_min(1.0).sqrt())
        ctx.save_for_backward(scores, hit, flat, user, norm, length, cosine, still)
        ctx.shares, ctx.clip = shares.to(scores.dtype), clip
        return ((2.0 - 2.0 * cosine) * ctx.shares).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scores, hit, flat, user, norm, length, cosine, still = ctx.saved_tensors
        clip = ctx.clip
        weight = -2.0 * grad * ctx.shares * ~still
        towards = weight / (norm * length.clamp_min(1.0).sqrt())
        shrink = -weight * cosine / norm.square()
        bounded, hit_bounded = (x if clip is None else x.clamp(-clip, clip) for x in (scores, hit))
        grad_scores = bounded * shrink
        grad_hit = hit_bounded * shrink[user] + towards[user]
        if clip is not None:
            grad_scores.masked_fill_(scores.abs() > clip, 0.0)
            grad_hit = grad_hit.masked_fill(hit.abs() > clip, 0.0)
        grad_scores.view(-1)[flat] = grad_hit
        return grad_scores, -grad_hit, None, None, None, None
