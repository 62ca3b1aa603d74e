"""The export that a place means: an export itself, or one made of a run's best checkpoint for a moment.

In: a folder. Out: an `Export`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from hse_dist.config import parse_config
from hse_dist.errors import UserError
from hse_dist.export.format import Export, load_export
from hse_dist.run_folder import stored_config


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
    from hse_dist.export.writer import export

    raw = stored_config(folder).model_dump(mode="json")
    with tempfile.TemporaryDirectory() as temporary:
        raw["export"] |= {"folder": str(Path(temporary) / "export"), "format": "parquet", "values": "float32"}
        export(parse_config(raw, f"of {folder}"))
        return load_export(Path(temporary) / "export")
