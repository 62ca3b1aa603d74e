"""Make the start, train it and keep the best checkpoint; the same as `hse-dist train`.

ray job submit --working-dir . -- python jobs/train.py …
"""

import sys

from hse_dist.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
