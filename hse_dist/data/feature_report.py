"""What `prepare` says of features: how many values there are and who has one, and what looks wrong.

In: counts that the rounds of `features.py` made. Out: a summary for the job's JSON, lines of the log, warnings, and the
error of a feature without any value. Most mistakes with a table show here: ids of another kind, a column of the wrong
name, several values in one text.
"""

from __future__ import annotations

import logging
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from hse_dist.config import FeatureSettings
from hse_dist.errors import DataError

FEW = 0.1
"""Share of users or items with a value below which a warning asks whether the ids are the same."""
MANY = 0.5
"""Share of values with a separator above which a warning asks whether each is several."""
SEPARATORS = ("|", ";", ",")

log = logging.getLogger(__name__)


def summary(name: str, feature: FeatureSettings, values: int, having: int, among: int) -> dict[str, Any]:
    """Log what came of a feature; of (what has it), values (rows) and share (of training users, or of items, that have
    at least one).

    Args:
        values: rows of the feature.
        having: how many training users, or items, have one of them; among: how many there are.
    """
    whose = "training users" if feature.of == "user" else "items"
    share = having / among
    log.info("prepare: feature %s: %d values, %.1f %% of the %s have one", name, values, 100 * share, whose)
    if share < FEW:
        log.warning(
            "prepare: only %d of %d %s have a value of the feature %s: are its ids those of the log "
            "(data.features.%s.key), and is data.features.%s.min_count = %d not too high?",
            *(having, among, whose, name, name, name, feature.min_count),
        )
    return {"of": feature.of, "values": values, "share": round(share, 4)}


def warn_of_several(name: str, feature: FeatureSettings, values: pa.Array) -> None:
    """Warn where most values look like several in one text."""
    if feature.separator is not None or not pa.types.is_large_string(values.type):
        return
    for separator in SEPARATORS:
        found = pc.sum(pc.match_substring(values, separator)).as_py()
        if found > MANY * len(values):
            log.warning(
                "prepare: %d of %d values of the feature %s contain %r: if each is several values, set "
                'data.features.%s.separator = "%s"',
                *(found, len(values), name, separator, name, separator),
            )


def without_values(
    name: str, feature: FeatureSettings, key: str, largest: int | None, ids: tuple[Any, Any]
) -> DataError:
    """The error of a feature of which no row is left.

    Args:
        key: the column of ids.
        largest: how many have the most frequent value; None: the table has no values at all.
        ids: one of the table and one of the log.
    """
    if largest is None:
        return DataError(
            f"The feature {name} has no values: all are missing or empty.",
            setting=f"data.features.{name}.column",
            value=feature.column,
        )
    if not largest:
        who = "training users" if feature.of == "user" else "items that are left"
        return DataError(
            f"The feature {name} has values of none of the {who}.",
            cause=f"Its table has ids like {ids[0]!r}, the log has ids like {ids[1]!r}: are they the same ones?",
            setting=f"data.features.{name}.key",
            value=key,
        )
    return DataError(
        f"The feature {name} has no value that {feature.min_count} {feature.of}s have.",
        cause=f"The most frequent one has {largest}.",
        setting=f"data.features.{name}.min_count",
        value=feature.min_count,
    )
