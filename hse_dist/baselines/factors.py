"""One factorization of items × items a λ, and all that three baselines at any budget need of it.

In: prepared data and λ. Out: a `Sketch`: EASE's top lists for the held-out users, and by item the strongest entries of
EASE's weights and of HSE's factor, in falling order, so that a smaller budget is a prefix of a larger one. The matrix
itself is gone then.

What it costs: items³ flops for P = (XᵀX + λI)⁻¹ and a third of that for the factor of HSE, one matrix of items² numbers
(float32 above 10 000 items), and 16 × items × `KEEP` bytes of sketch. On one thread some seconds for 1 682 items, a
minute for 17 000, 15 to 20 minutes and 7 GiB for 41 000 (Gowalla), and a climb over λ asks for three to six. So a
matrix of methods, budgets and splits hands the same `Factors` to every call: the sketches of a λ are made once, and
with a folder they outlive the process.

HSE (Van Balen & Goethals, WWW 2021): with d = diag P, E Eᵀ = c · diag(d) - P by Cholesky, items in falling count;
scores of unseen items are (x E)·Eⱼ / d_j. The paper has c = 2; no c changes the full model's scores, so it is doubled
where the matrix is not positive definite.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hse_dist.baselines.ease import DOUBLE_ITEMS, Ease, check_memory, fit_ease, mirror
from hse_dist.baselines.fitting import top_lists
from hse_dist.errors import NumericError
from hse_dist.files import new_file
from hse_dist.sparsity.start.dense_inverse import factor_in_place

if TYPE_CHECKING:
    from hse_dist.data.prepared import Prepared

KEEP = 512
"""Entries an item that a sketch keeps, of the weights and of the factor."""

EASE, PRUNED, HSE = PARTS = ("ease", "pruned", "hse")
"""The parts that a sketch can have."""

_DOUBLINGS = 10
_ROWS = 1024

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Strongest:
    """By item its strongest entries, |value| falling: columns int32, values float32, both `[items, kept]`; 0: none."""

    columns: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Sketch:
    """What is left of a factorization.

    Attributes:
        tops: of each split with users the lists of full EASE, int64 `[users, 100]`.
        weights: row j holds what score j takes from other items, B_ij; None: not asked for.
        factor: row j of E; None: not asked for.
        gains: 1 / diag(P), float32 `[items]`.
    """

    tops: dict[str, np.ndarray]
    weights: Strongest | None
    factor: Strongest | None
    gains: np.ndarray


class Factors:
    """Sketches of one prepared folder by λ, as long as the caller holds this object.

    Args:
        parts: what to make of each factorization; all of it, unless only one baseline will ask.
        folder: where sketches are kept beyond this process, a file a λ; None: in memory alone.
        users: users ranked at a time.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        parts: tuple[str, ...] = PARTS,
        folder: str | Path | None = None,
        users: int = 512,
    ) -> None:
        self._prepared, self._parts, self._users = prepared, parts, users
        self._folder = None if folder is None else Path(folder)
        self._sketches: dict[float, Sketch] = {}

    def known(self) -> list[float]:
        """The λ whose sketches cost nothing, or the reading of a file."""
        paths = [] if self._folder is None else self._folder.glob(f"{self._prefix}-*.npz")
        return sorted({*self._sketches, *(float(path.stem.removeprefix(f"{self._prefix}-")) for path in paths)})

    def sketch(self, regularization: float) -> Sketch:
        """The sketch of a λ.

        Raises:
            ResourceError: one matrix of items × items does not fit into memory.
            ConfigError, NumericError: as `fit_ease`.
        """
        if regularization not in self._sketches:
            path = self._path(regularization)
            if path is not None and path.exists():
                self._sketches[regularization] = _read(path)
            else:
                self._sketches[regularization] = self._make(regularization)
                if path is not None:
                    _write(path, self._sketches[regularization])
        return self._sketches[regularization]

    @property
    def _prefix(self) -> str:
        # other data, other parts: other files
        name = f"{self._prepared.fingerprint} {KEEP} {' '.join(self._parts)}"
        return hashlib.sha256(name.encode()).hexdigest()[:16]

    def _path(self, regularization: float) -> Path | None:
        return None if self._folder is None else self._folder / f"{self._prefix}-{regularization:g}.npz"

    def _make(self, regularization: float) -> Sketch:
        prepared = self._prepared
        dtype = np.dtype(np.float64 if prepared.items <= DOUBLE_ITEMS else np.float32)
        check_memory(prepared.items, dtype, self._users)
        model = fit_ease(prepared.matrix("train"), regularization, dtype)
        tops = {}
        if EASE in self._parts:
            splits = [split for split in ("valid", "test") if prepared.users(split)]
            tops = {split: top_lists(model.scores, prepared, split, self._users) for split in splits}
        weights = _strongest(_weights(model), prepared.items) if PRUNED in self._parts else None
        gains = (-model.scale).astype(np.float32)
        # this overwrites the matrix, so it comes last
        factor = _strongest(_lower_rows(factorize(model)), prepared.items) if HSE in self._parts else None
        logger.info("Factored %d items with regularization %g", prepared.items, regularization)
        return Sketch(tops, weights, factor, gains)


def factorize(model: Ease) -> np.ndarray:
    """E, in the lower triangle of a Fortran matrix (what lies above it has no meaning); overwrites `model.inverse`.

    Raises:
        NumericError: no multiple of the diagonal makes it positive definite.
    """
    matrix = model.inverse.T
    diagonal = matrix.diagonal().copy()
    np.negative(matrix, out=matrix)
    for doubling in range(1, _DOUBLINGS + 1):
        np.fill_diagonal(matrix, (2**doubling - 1) * diagonal)
        if factor_in_place(matrix):
            return matrix
        mirror(matrix.T)  # the upper triangle still has what was overwritten
    raise NumericError("c · diag(P) - P is not positive definite.", cause="The regularization is too small.")


def _weights(model: Ease) -> Iterator[np.ndarray]:
    """Blocks of rows of Bᵀ."""
    for first in range(0, len(model.inverse), _ROWS):
        block = model.inverse[first : first + _ROWS] * model.scale[first : first + _ROWS, None]
        block[np.arange(len(block)), first + np.arange(len(block))] = 0.0
        yield block


def _lower_rows(factor: np.ndarray) -> Iterator[np.ndarray]:
    """Blocks of rows of E."""
    for first in range(0, len(factor), _ROWS):
        yield np.tril(factor[first : first + _ROWS], first)


def _strongest(blocks: Iterator[np.ndarray], items: int) -> Strongest:
    """The `KEEP` entries of largest |value| of each row."""
    keep, first = min(KEEP, items), 0
    columns, values = np.empty((items, keep), np.int32), np.empty((items, keep), np.float32)
    for block in blocks:
        strength = np.abs(block)
        kept = np.argpartition(strength, items - keep, axis=1)[:, items - keep :]
        order = np.argsort(-np.take_along_axis(strength, kept, 1), axis=1, kind="stable")
        kept = np.take_along_axis(kept, order, 1)
        columns[first : first + len(block)] = kept
        values[first : first + len(block)] = np.take_along_axis(block, kept, 1)
        first += len(block)
    return Strongest(columns, values)


def _write(path: Path, sketch: Sketch) -> None:
    arrays = {"gains": sketch.gains, **{f"top_{split}": top for split, top in sketch.tops.items()}}
    for name, part in (("weights", sketch.weights), ("factor", sketch.factor)):
        if part is not None:
            arrays |= {f"{name}_columns": part.columns, f"{name}_values": part.values}
    with new_file(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def _read(path: Path) -> Sketch:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}

    def part(name: str) -> Strongest | None:
        columns = arrays.get(f"{name}_columns")
        return None if columns is None else Strongest(columns, arrays[f"{name}_values"])

    tops = {name.removeprefix("top_"): top for name, top in arrays.items() if name.startswith("top_")}
    return Sketch(tops, part("weights"), part("factor"), arrays["gains"])
