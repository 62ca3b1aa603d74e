"""Every series that a run exports to Prometheus, and the value of `metrics.jsonl` that it shows.

In: nothing. Out: `SERIES`, one line each. Ray adds `ray_` before a name and `_total` after a counter's, and the tags of
node and process; ours are `run`, the run folder, and where a value has parts, the part. deploy/grafana/hse-dist.json
shows all of them: a test holds it to this list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

STEP_SECONDS = "hse_step_seconds"
"""A histogram of the steps of rank 0, each observed by itself. Ray makes a histogram's sum from the middles of its
buckets, so quantiles are meant to be read, not the mean."""
STEP_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)


@dataclass(frozen=True)
class Series:
    """One series, or one of each part of a value.

    Attributes:
        name: without what Ray adds.
        type: `gauge`: the newest value; `counter`: the sum of the values of all events; `running`: a counter of values
            that are themselves sums since the start of the run; `events`: a counter of events.
        kind, value: of the line and in it; `value` is empty for `events`.
        what: it is, in a line.
        part: tag of a value's parts.
    """

    name: str
    type: Literal["gauge", "counter", "running", "events"]
    kind: str
    value: str
    what: str
    part: str = ""

    @property
    def exported(self) -> str:
        """The name in Prometheus."""
        return f"ray_{self.name}" + ("" if self.type == "gauge" else "_total")


SERIES = (
    Series("hse_step", "gauge", "train", "step", "steps that are done"),
    Series("hse_loss", "gauge", "train", "loss", "mean loss since the line before"),
    Series("hse_steps_per_second", "gauge", "train", "steps_per_second", "steps a second"),
    Series("hse_users_per_second", "gauge", "train", "users_per_second", "examples (users) a second, all ranks"),
    Series("hse_live_entries", "gauge", "train", "live_entries", "live entries of the table"),
    Series("hse_wire_bytes", "running", "train", "wire_bytes", "bytes sent to other ranks", part="sent"),
    Series("hse_wait_share", "gauge", "train", "wait_share", "share of the slowest rank's time: it waits for batches"),
    Series("hse_memory_bytes", "gauge", "train", "memory_bytes", "resident memory of the rank that has most"),
    Series("hse_eta_seconds", "gauge", "train", "eta_seconds", "seconds to the last step"),
    Series("hse_skipped_steps", "running", "train", "skipped", "steps left out for NaN or infinity"),
    Series("hse_ndcg_100", "gauge", "validate", "ndcg@100", "validation nDCG@100"),
    Series("hse_recall_20", "gauge", "validate", "recall@20", "validation Recall@20"),
    Series("hse_recall_50", "gauge", "validate", "recall@50", "validation Recall@50"),
    Series("hse_rewires", "events", "rewire", "", "rewires"),
    Series("hse_dropped_entries", "counter", "rewire", "dropped", "entries dropped by rewires"),
    Series("hse_grown_entries", "counter", "rewire", "grown", "entries grown by rewires"),
    Series("hse_restored_entries", "counter", "rewire", "restored", "entries dropped and restored in the same rewire"),
    Series("hse_drop_fraction", "gauge", "rewire", "fraction", "share of the live entries that a rewire may drop"),
    Series("hse_bad_files", "events", "bad_file", "", "prepared files left out"),
)
"""In the order of the lines of metrics.jsonl."""
