"""The cluster's job server: Ray's own client, with a limit on every request and errors in the project's words.

In: the address of a dashboard. Out: jobs that are submitted, looked at, listened to and stopped.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hse_dist.errors import ResourceError, TrainingError

REQUEST_SECONDS = (10.0, 30.0)
"""To connect, and between two bytes of an answer."""
WORDS = 300
"""Most characters of a server's own message."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class State:
    """What is known of a job.

    Attributes:
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        exit_code: of its driver, negative for a signal; None where it had none, or was stopped.
        message: Ray's own.
    """

    status: str
    exit_code: int | None = None
    message: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in ENDED


class JobServer:
    """A connection; made when the cluster has answered once.

    Raises:
        ResourceError: nothing, or something else than Ray, answers; or it does not take the token.
    """

    def __init__(self, address: str, seconds: tuple[float, float] = REQUEST_SECONDS) -> None:
        from ray.job_submission import JobSubmissionClient

        class Client(JobSubmissionClient):
            def _do_request(self, *words: Any, **more: Any) -> Any:  # Ray waits without a limit
                return super()._do_request(*words, timeout=seconds, **more)

        self.address = address
        for module in (
            "dashboard_sdk",
            "job.sdk",
        ):  # they set their own levels when they are imported, as they just were
            logging.getLogger(f"ray.dashboard.modules.{module}").setLevel(logging.WARNING)
        with self._answering(), _no_other_address():
            self._client = Client(address)

    def submit(self, entrypoint: str, runtime_env: dict[str, Any], name: str) -> None:
        """Send a job; it has this name from then on."""
        with self._answering():
            self._client.submit_job(
                entrypoint=entrypoint, runtime_env=runtime_env, submission_id=name, metadata={"program": "hse-dist"}
            )

    def state(self, name: str) -> State:
        """How a job is."""
        with self._answering():
            info = self._client.get_job_info(name)
        return State(str(info.status.value), info.driver_exit_code, info.message or "")

    def stop(self, name: str) -> None:
        """Ask a job to stop, as SIGTERM does."""
        with self._answering():
            self._client.stop_job(name)

    def log(self, name: str) -> AsyncIterator[str]:
        """The log of a job from its beginning, as it grows; ends with the job, or with the connection."""
        found: AsyncIterator[str] = self._client.tail_job_logs(name)
        return found

    @contextmanager
    def _answering(self) -> Iterator[None]:
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError:
            raise ResourceError(
                f"The cluster at {self.address} does not take this token.",
                cause="Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN as on its head (deploy/README.md).",
            ) from None
        except requests.Timeout:
            raise ResourceError(f"{self.address} does not answer within {REQUEST_SECONDS[1]:.0f} s.") from None
        except (ConnectionError, requests.ConnectionError):
            raise ResourceError(
                f"No Ray cluster answers at {self.address}.",
                cause="Is this its dashboard's address (port 8265 unless it was changed), does it speak http or https "
                "as said here, and does a tunnel lead there from this machine?",
            ) from None
        except (requests.RequestException, RuntimeError, KeyError, TypeError, ValueError) as error:
            if hasattr(self, "_client") and isinstance(error, RuntimeError):
                raise TrainingError(f"{self.address} refused the request: {_first(error)}") from None
            raise ResourceError(
                f"Something else than a Ray cluster answers at {self.address}: {_first(error)}",
                cause="The address is that of the dashboard on the cluster's head.",
            ) from None


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:WORDS]


@contextmanager
def _no_other_address() -> Iterator[None]:
    """Ray's client takes these variables rather than the address that it is given."""
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
