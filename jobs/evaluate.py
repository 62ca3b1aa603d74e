"""Rank the whole catalogue for held-out users; the same as `hse-dist evaluate`.

ray job submit --working-dir . -- python jobs/evaluate.py …
"""

import sys

from hse_dist.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
