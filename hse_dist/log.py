"""Log levels of a process: this project's messages from INFO up, everybody's warnings, and no more.

Light on purpose: Ray imports it in every worker process before anything else.
"""

from __future__ import annotations

import logging
import sys

CHATTY = (
    "torch.fx._symbolic_trace",
    "torchrec.distributed.planner",
    # asks the dashboard, which a local cluster does without, and says so every second
    "ray.train.v2._internal.execution.controller.placement_group_cleaner",
)
"""Loggers whose warnings say nothing that a user of this project could act on."""
WORDY = ("ray.train.v2._internal.execution.storage",)
"""Loggers that tell of every checkpoint, at a level that Ray Train has set for all of its own."""


def set_levels() -> None:
    """Set the levels in this process; fbgemm logs its settings at INFO through the root logger."""
    logging.getLogger().setLevel(logging.WARNING)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in WORDY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("hse_dist").setLevel(logging.INFO)


def set_up_worker() -> None:
    """The hook of Ray's worker processes: what they log at their own start, and where."""
    set_levels()
    ours = logging.getLogger("hse_dist")
    if not ours.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        ours.addHandler(handler)
        ours.propagate = False
