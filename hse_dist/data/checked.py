"""Histories that may vanish, be cut off or change while a run reads them.

In: row groups of a prepared folder's files, asked for one by one. Out: their histories, if the file is the one that
`prepare` wrote: its checksum is compared with the manifest's before it is first read, and again when its place on the
disk, size or time of change differ. By `data.on_bad_file` a file that is not ends the run, or its users have empty
histories until the workers start again: the order of the others, and the number of steps, stay as they were on all
ranks.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq

from hse_dist.data.prepared import HistoryBlock, Prepared, check_lists, no_histories, reading, to_block
from hse_dist.errors import DataError
from hse_dist.files import refuse_devices

log = logging.getLogger(__name__)
Signature = tuple[int, int, int]


class CheckedFiles:
    """The training files of a prepared folder.

    Args:
        on_bad_file: stop or skip.
        features: those of users that are read, too.

    Attributes:
        bad: what is wrong with which file, of those that are left out.
    """

    def __init__(self, prepared: Prepared, on_bad_file: str, features: Sequence[str] = ()) -> None:
        self._folder, self._policy = prepared.folder, on_bad_file
        self._sums = prepared.checksums("train")
        self._limits, self._features = prepared.limits(("rows",), features), tuple(features)
        self._open: dict[str, tuple[Signature, pq.ParquetFile]] = {}
        self.bad: dict[str, str] = {}

    def read(self, path: str, group: int, users: int) -> HistoryBlock:
        """The histories of a row group of `users` users, empty ones where the file is left out.

        Raises:
            DataError: the file is not what was prepared, and the run is to stop.
        """
        if path not in self.bad:
            try:
                return self._read(path, group, users)
            except DataError as error:
                if self._policy == "stop":
                    raise
                self.bad[path] = error.what
                self._open.pop(path, None)
                log.warning("%s Its users are left out from now on.", error.what)
        return no_histories(users, self._features)

    def _read(self, path: str, group: int, users: int) -> HistoryBlock:
        file = self._folder / path
        with reading(file):
            now = None
            while now is None or now != _signature(file):  # else it was all the time what it was found to be
                known, now = self._open.get(path), _signature(file)
                if known is None or known[0] != now:
                    refuse_devices(file)
                    self._check(file, self._sums[path])
                    known = self._open[path] = (now, pq.ParquetFile(file))
                found = known[1].metadata
                rows = found.row_group(group).num_rows if group < found.num_row_groups else 0
                if rows != users:
                    raise DataError(f"{file} has {rows} users in row group {group}, the manifest says {users}.")
                table = known[1].read_row_group(group, columns=list(self._limits), use_threads=False)
            batches = table.combine_chunks().to_batches()
        if len(batches) != 1 or batches[0].num_rows != users:
            raise DataError(f"{file} has not the {users} users in row group {group} that it says it has.")
        return to_block(check_lists(batches[0], self._limits, file))

    def _check(self, file: Path, wanted: str) -> None:
        with file.open("rb") as opened:
            found = hashlib.file_digest(opened, "sha256").hexdigest()
        if found != wanted:
            raise DataError(
                f"{file} of the prepared folder is not what was prepared: its checksum is another one.",
                cause="Put it back or prepare again; or leave out its users.",
                setting="data.on_bad_file",
                value=self._policy,
            )


def _signature(file: Path) -> Signature:
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
