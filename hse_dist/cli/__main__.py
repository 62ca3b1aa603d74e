"""`python -m hse_dist.cli …`, the same as `hse-dist …`."""

import sys

from hse_dist.cli.main import main

sys.exit(main())
