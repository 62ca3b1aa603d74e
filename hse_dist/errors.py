"""The one family of errors that this project raises on purpose.

In: what happened, the likely cause, the setting to look at and its value.
Out: an exception whose text a user can act on, and that survives pickling between Ray processes.

A command prints an `HseError` as one message without a traceback and ends with its `exit_code`: 2 where the user can
mend it (settings, input, a folder), 1 where the system failed, 143 where SIGTERM stopped it.
"""

from __future__ import annotations


class HseError(Exception):
    """Base of the family.

    Args:
        what: what happened, one sentence.
        cause: the likely cause, or what to do; may be empty.
        setting: dotted path of the setting to look at, if there is one.
        value: that setting's value.
    """

    exit_code = 1

    def __init__(self, what: str, *, cause: str = "", setting: str = "", value: object = None) -> None:
        self.what, self.cause, self.setting, self.value = what, cause, setting, value
        super().__init__(what)

    def __str__(self) -> str:
        parts = [self.what]
        if self.cause:
            parts.append(self.cause)
        if self.setting:
            parts.append(f"(setting {self.setting} = {self.value!r})")
        return " ".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.cause, self.setting, self.value)


def _rebuild(kind: type[HseError], what: str, cause: str, setting: str, value: object) -> HseError:
    return kind(what, cause=cause, setting=setting, value=value)


class UserError(HseError):
    """The user can mend it: settings, input or a folder."""

    exit_code = 2


class ConfigError(UserError):
    """Settings that are unknown, of the wrong type, out of range or contradictory; all of them in one message."""


class DataError(UserError):
    """A log, a prepared folder or a file in it cannot be used."""


class RunFolderError(UserError):
    """The run folder belongs to another configuration, lacks a checkpoint, or cannot be written."""


class ResourceError(UserError):
    """The cluster has less than the configuration asks for."""


class ExportError(UserError):
    """An export cannot be written or read."""


class PlanError(HseError):
    """A sharding plan that this project does not support, or that TorchRec refuses."""


class NumericError(HseError):
    """NaN or infinity where a number is needed; names the table and the row."""


class ProtocolError(HseError):
    """A message to the SparsityServer that does not fit its version, round or configuration."""


class MissingRanksError(HseError):
    """A wait ended at its limit; names the ranks that were missing."""


class PreemptedError(HseError):
    """SIGTERM stopped the job; where training had begun, its checkpoint is complete."""

    exit_code = 143


class TrainingError(HseError):
    """A worker failed; carries the worker's own words."""


class ServeError(HseError):
    """A server did not start, or stopped answering."""
