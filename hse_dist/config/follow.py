"""Settings of `train --follow`: how new data are waited for, and what is kept of rounds that are over."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from hse_dist.config.base import Settings


class FollowSettings(Settings):
    poll_seconds: PositiveFloat = 60.0
    """Between looks at the log for new files."""
    watermark_seconds: NonNegativeFloat = 300.0
    """A partition (the folder of a file) is complete when none of its files has changed for so long."""
    tries: PositiveInt = 10
    """A log that cannot be listed or read, or a file of it, is looked at so many times, each after a poll."""
    epochs: PositiveInt | None = None
    """Passes over the training users in each round after the first; without it `train.epochs`."""
    rounds: PositiveInt | None = None
    """Rounds, all together, after which it ends; without it never."""
    idle_seconds: NonNegativeFloat | None = None
    """It ends when nothing new has come for so long; without it never."""
    export_every: PositiveInt = 1
    """Rounds from one export to the next."""
    keep: Annotated[int, Field(ge=2)] = 3
    """Newest rounds, prepared versions and exports that stay on disk; a round needs the one before it."""
