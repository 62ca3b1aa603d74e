"""What the end of a job means for the command that submitted it: a result, or an error with the job's exit code.

In: a job's last state, and the result at the end of its log. Out: the result, or the error. Ray's own client ends with
1 whatever the job ended with, and with 0 for one that was stopped.
"""

from __future__ import annotations

import signal
from typing import Any

from hse_dist.errors import HseError, PreemptedError, TrainingError, UserError
from hse_dist.submit.server import State

WORDS = 600
"""Most characters of Ray's own message."""
ABOVE = "Its message stands above."


def outcome(state: State, result: dict[str, Any] | None, *, lacks_package: bool = False) -> dict[str, Any]:
    """The result of a job that succeeded.

    Raises:
        HseError: it did not; its `exit_code` is the job's own, 143 where it was stopped, and 128 + N where signal N
            ended it.
    """
    if state.status == "SUCCEEDED":
        if result is None:
            raise TrainingError("The job ended well, but the last line of its log is no result.")
        return result
    if state.status == "STOPPED":
        raise PreemptedError("The job was stopped.", cause="What it had written stays; train goes on from there.")
    raise _failure(state, lacks_package)


def _failure(state: State, lacks_package: bool) -> HseError:
    code = state.exit_code
    if code is None:
        return TrainingError("The job did not start.", cause=_last_words(state.message))
    if lacks_package:
        return UserError(
            "The cluster has no hse_dist.",
            cause="Send a checkout's code with --working-dir, and add --install where its packages are missing, too.",
        )
    if code < 0:
        name = signal.Signals(-code).name if -code in list(signal.Signals) else f"signal {-code}"
        cause = "The driver's machine had no memory left, perhaps." if -code == signal.SIGKILL else ""
        return _with_code(TrainingError(f"The job was ended by {name}.", cause=cause), 128 - code)
    kinds: dict[int, type[HseError]] = {UserError.exit_code: UserError, PreemptedError.exit_code: PreemptedError}
    return _with_code(kinds.get(code, TrainingError)(f"The job ended with exit code {code}.", cause=ABOVE), code)


def _with_code(error: HseError, code: int) -> HseError:
    error.exit_code = code
    return error


def _last_words(message: str) -> str:
    """The end of a message, which is often a traceback with its cause last."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1][-WORDS:] if lines else "Ray does not say why."
