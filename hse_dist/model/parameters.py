"""The dense parameters of a model: a weight a feature, and the temperature of its loss.

In: the settings. Out: a few numbers that every rank holds (data-parallel), as torch parameters. They are the same on
all ranks, since they begin alike and all ranks apply the mean of their gradients (`train/dense_update.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from hse_dist.errors import RunFolderError

if TYPE_CHECKING:
    from hse_dist.config import Config

FIRST_WEIGHTS = {"user": 1.0, "item": 0.01}
ARRAYS = "dense_parameters"
"""Their name in a checkpoint."""


class DenseParameters(nn.Module):
    """Attributes:
    names: of the features.
    weights: float32 [features], what a row of each feature counts beside an item of a history.
    log_temperature: float32 scalar; None where the loss has no temperature.
    """

    def __init__(
        self, weights: Sequence[float] = (), temperature: float | None = None, names: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.names = tuple(names)
        self.weights = nn.Parameter(torch.tensor(weights, dtype=torch.float32))
        self.log_temperature = None if temperature is None else nn.Parameter(torch.tensor(math.log(temperature)))

    @classmethod
    def of(cls, config: Config, names: Sequence[str] = ()) -> DenseParameters:
        """Those of a run, with the features in this order."""
        model = config.model
        given = [(config.tables.features[name].weight, config.data.features[name].of) for name in names]
        first = [FIRST_WEIGHTS[of] if weight is None else weight for weight, of in given]
        return cls(first, None if model.loss == "cosine" else model.temperature, names)

    @property
    def temperature(self) -> Tensor:
        """What scores are divided by, a scalar."""
        assert self.log_temperature is not None
        return self.log_temperature.exp()

    @property
    def trained(self) -> list[nn.Parameter]:
        """Those that there are."""
        return [part for part in self.parameters() if part.numel()]

    def told(self) -> dict[str, float]:
        """The weight of each feature by its name, and the temperature if there is one."""
        weights = dict(zip(self.names, self.weights.detach().tolist(), strict=True))
        return weights if self.log_temperature is None else {**weights, "temperature": float(self.temperature.detach())}

    @property
    def count(self) -> int:
        """Numbers in all."""
        return sum(part.numel() for part in self.trained)

    def arrays(self) -> dict[str, np.ndarray]:
        """All of them as one array; empty where there are none."""
        parts = [part.detach().reshape(-1) for part in self.trained]
        return {ARRAYS: torch.cat(parts).cpu().numpy()} if parts else {}

    def load_arrays(self, state: dict[str, np.ndarray]) -> None:
        """Become what `arrays()` gave.

        Raises:
            RunFolderError: it is not that of such parameters.
        """
        if not self.trained:
            return
        values = checked(state, ARRAYS, self.count)
        with torch.no_grad():
            for part, value in zip(self.trained, values.split([part.numel() for part in self.trained]), strict=True):
                part.copy_(value.view_as(part))


def checked(state: dict[str, np.ndarray], name: str, count: int) -> Tensor:
    """An array of a checkpoint, float32 [count].

    Raises:
        RunFolderError: it is something else.
    """
    found = state.get(name, np.empty(0, np.float32))
    if found.shape != (count,) or found.dtype != np.float32 or not np.isfinite(found).all():
        raise RunFolderError(
            f"The checkpoint's {name} are {found.dtype} {found.shape}, not {count} finite numbers of float32.",
            cause="It was changed, or it belongs to another run.",
        )
    return torch.from_numpy(found)
