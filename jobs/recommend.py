"""Answer histories from an export alone; the same as `hse-dist recommend`.

ray job submit --working-dir . -- python jobs/recommend.py …
"""

import sys

from hse_dist.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["recommend", *sys.argv[1:]]))
