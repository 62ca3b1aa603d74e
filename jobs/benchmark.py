"""Measure steps on this machine; the same as `hse-dist benchmark`.

ray job submit --working-dir . -- python jobs/benchmark.py …
"""

import sys

from hse_dist.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
