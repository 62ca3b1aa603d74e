"""Make the histories and the vocabulary from a raw log; the same as `hse-dist prepare`.

ray job submit --working-dir . -- python jobs/prepare.py …
"""

import sys

from hse_dist.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
