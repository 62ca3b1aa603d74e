"""Settings of what a run says of itself while it trains, beside `metrics.jsonl`, which is always written."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hse_dist.config.base import Settings


class MetricsSettings(Settings):
    sinks: tuple[Literal["tensorboard", "prometheus", "mlflow"], ...] = ("tensorboard", "prometheus")
    """Where else the numbers of `metrics.jsonl` go: scalars in the run folder; Ray's Prometheus endpoint (there is none
    with `cluster.workers = 0`); an MLflow server (extra `mlflow`)."""
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port of the Prometheus endpoint where training starts a local cluster, on loopback; without it a free one, which
    the log names. On a cluster that is there every node has its own."""
    mlflow_uri: str | None = None
    """MLflow's tracking server, as rank 0 reaches it; without it MLFLOW_TRACKING_URI."""
