"""The export that a place means: an export itself, a run's, or one made of a run for a moment.

In: a folder. Out: an `Export`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from hse_dist.config import parse_config
from hse_dist.errors import UserError
from hse_dist.export.format import Export, load_export
from hse_dist.files import read_json


def open_place(place: str | Path) -> Export:
    """The matrix of an export or of a run's best checkpoint.

    Raises:
        UserError: the folder is neither. HseError: see the job `export`.
    """
    folder = Path(place)
    if not (folder / "config.json").exists():
        if (folder / "manifest.json").exists():
            return load_export(folder)
        raise UserError(f"{folder} is neither a run nor an export.", cause="Train or export first.")
    if (folder / "export" / "manifest.json").exists():
        return load_export(folder / "export")
    from hse_dist.export.writer import export

    raw = read_json(folder / "config.json", "run's configuration")
    with tempfile.TemporaryDirectory() as temporary:
        raw["run"]["folder"], raw["cluster"]["workers"] = str(folder), 0
        raw["export"] |= {"folder": str(Path(temporary) / "export"), "format": "parquet", "values": "float32"}
        export(parse_config(raw, f"of {folder}"))
        return load_export(Path(temporary) / "export")
