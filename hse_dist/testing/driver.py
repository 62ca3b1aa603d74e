"""The job `train`, whose workers look for planted faults; a program of its own, so that it can be killed.

In: the words of `hse-dist`. Out: as that.
"""

from __future__ import annotations

import sys

from hse_dist.cli.main import main
from hse_dist.testing.faults import faulty_worker
from hse_dist.train import driver

if __name__ == "__main__":
    vars(driver)["train_worker"] = faulty_worker
    sys.exit(main())
