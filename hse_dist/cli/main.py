"""From the command line's words to an exit code.

In: the words after the program's name. Out: the job's JSON object as the last line of standard output, and 0; or a
message on standard error, and 2, 1, 130 or 143. A result may name another exit code as `exit_code`: an answer that
scripts are to see as a failure. HSE_DEBUG=1 adds the traceback to the message. An exception that this project did not
foresee keeps its traceback: it is a bug, and Python's own exit code for it is 1.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence

from hse_dist.cli.commands import COMMANDS
from hse_dist.cli.console import only_result, set_up_logging, write_result
from hse_dist.cli.parser import parse
from hse_dist.errors import HseError, PreemptedError
from hse_dist.submit.shared import check_shared

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job; its exit code."""
    words = parse(sys.argv[1:] if arguments is None else arguments)
    set_up_logging()
    try:
        check_shared()
        with only_result() as stdout:
            result = COMMANDS[words.job](words)
            write_result(result, stdout)
    except HseError as error:
        if os.environ.get("HSE_DEBUG") == "1":
            traceback.print_exc()
        print(f"hse-dist {words.job}: {error}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, SystemExit) as end:
        # Ray Train answers Ctrl-C with sys.exit(0), and Ray SIGTERM with sys.exit(15): neither is a success
        terminated = isinstance(end, SystemExit) and end.code == signal.SIGTERM
        print(f"hse-dist {words.job}: {'terminated' if terminated else 'interrupted'}.", file=sys.stderr)
        return PreemptedError.exit_code if terminated else INTERRUPTED
    return int(result.get("exit_code", 0))
