"""Write the item matrix of the best checkpoint; the same as `hse-dist export`.

ray job submit --working-dir . -- python jobs/export.py …
"""

import sys

from hse_dist.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))
