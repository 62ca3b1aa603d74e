"""Settings of the run around the tables: model, training, cluster, evaluation, export."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from hse_dist.config.base import Fraction, Settings


class RunSettings(Settings):
    folder: str = "runs/run"
    """Where the run lives: resolved configuration, start, checkpoints, metrics, evaluation."""
    seed: NonNegativeInt = 0
    """Seed of the random start, negatives, dropout, random growth and the order of users."""
    resume: Literal["auto", "never", "must"] = "auto"
    """What to do about a checkpoint in `folder`: use it if there is one, refuse it, or insist on it."""
    continues: str | None = None
    """Folder of another run, a checkpoint of which takes the place of a start: its data may have had fewer items."""
    continues_from: Literal["newest", "best"] = "newest"
    """Which checkpoint of that run it is: the newest one, or the best one by validation."""


class ModelSettings(Settings):
    kind: Literal["autoencoder", "two_tower"] = "autoencoder"
    """What meets: histories and items; or histories with features of their users, and items with theirs."""
    loss: Literal["cosine", "softmax", "bpr"] = "cosine"
    """2 − 2·cos(scores, history); sampled softmax with log-Q correction; or Bayesian personalised ranking."""
    temperature: PositiveFloat = 0.1
    """`softmax` and `bpr`: first value of what scores by user vectors of length 1 are divided by; it is trained."""
    bpr_negatives: PositiveInt = 4
    """`bpr`: candidates that each item of a history is compared with."""
    row_norm: Literal["unit", "free"] = "free"
    """Rows of length 1 without gains (ELSA), or free rows with a gain an item (contains HSE and EASE)."""
    input_dropout: Fraction = 0.0
    """Share of a history that is hidden from the input, not from the target."""
    history_power: Annotated[float, Field(ge=0.0, le=1.0)] = 1.0
    """β: a history of n items counts as n^(1 − β) in the loss, as it does in the Gram matrix of a start whose
    `history_power` is β; 1: all users count alike."""
    score_clip: PositiveFloat | None = None
    """Scores are clipped to ± this before the loss."""
    user_entries: PositiveInt | None = None
    """m, entries of a user's vector that scores see, the strongest ones; without it all. In training, at evaluation and
    in what an export answers. The gradient passes straight through; training takes the plain path, which is slower."""
    compact_above: PositiveInt = 100_000
    """With more columns than this, a batch's columns are renumbered first."""


class TrainSettings(Settings):
    epochs: NonNegativeInt = 10
    """Passes over the training users; 0: the start is the result."""
    batch_size: PositiveInt = 256
    """Users a rank and step."""
    negatives: NonNegativeInt = 2048
    """Uniform candidates a rank and step beside the batch's own items."""
    optimizer: Literal["rowwise_adagrad", "adagrad"] = "rowwise_adagrad"
    """Fused optimizer of the values."""
    learning_rate: PositiveFloat = 0.01
    """Rate of the values."""
    gain_learning_rate: NonNegativeFloat = 0.001
    """Rate of the gains."""
    weight_learning_rate: NonNegativeFloat = 0.1
    """Rate of the features' weights, by Adagrad; the temperature's is a tenth of it."""
    decay: Literal["constant", "cosine"] = "cosine"
    """How the rates fall over the run."""
    warm_accumulator: NonNegativeFloat = 0.0
    """First value of the optimizer's accumulator; protects a good start from a first step of full size."""
    teacher: str | None = None
    """Folder of another run on the same prepared data, with more live entries: the scores of its best checkpoint take
    the place of histories in the cosine loss."""
    evaluate_every: PositiveInt = 1
    """Epochs between validations; the best checkpoint by these is the result."""
    better_by: NonNegativeFloat = 1.0
    """By how many standard errors of the mean difference over the validation users a checkpoint must be better than the
    best one before it to take its place; 0: by anything."""
    patience: NonNegativeInt = 0
    """Validations without a higher mean after which training stops; 0: never."""
    checkpoint_every: NonNegativeInt = 0
    """Steps between checkpoints beside those at each validation; 0: none."""
    log_every: PositiveInt = 10
    """Steps between lines of metrics."""
    on_nan: Literal["stop", "skip"] = "stop"
    """What NaN or infinity in a loss, row or gradient does: end the run, or leave out that step on all ranks."""


def _range(workers: int | str) -> tuple[int, int]:
    """The fewest and the most workers."""
    if isinstance(workers, int):
        return workers, workers
    fewest, most = workers.split("..")
    return int(fewest), int(most)


def _workers(value: Any) -> Any:
    if type(value) is int and value >= 0:
        return value
    if isinstance(value, str) and re.fullmatch(r"[1-9]\d{0,5}\.\.[1-9]\d{0,5}", value):
        fewest, most = _range(value)
        if fewest <= most:
            return value
    raise ValueError('Input should be a whole number from 0, or a range like "2..4"')


class ClusterSettings(Settings):
    workers: Annotated[int | str, BeforeValidator(_workers)] = 2
    """Ray Train workers, one rank each; 0: train in this process without Ray; "2..4": elastic, as many as the cluster
    has room for, at least 2 and at most 4. Only training is elastic, other jobs take the fewest."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where the tables and the arithmetic live."""
    cpus_per_worker: PositiveInt = 1
    """Cores, and threads of arithmetic, a worker."""
    placement: Literal["pack", "spread"] = "pack"
    """Workers on as few nodes as have room for them, or on as many: `pack` keeps gradients off the network, `spread`
    keeps the loss of a node small. Ray does what it can, and neither refuses a cluster that has room."""
    address: str | None = None
    """Ray cluster to join; without it RAY_ADDRESS, else a local one is started."""
    timeout_seconds: PositiveInt = 600
    """Limit of every wait for other ranks or the SparsityServer; after it the workers start again."""
    warn_seconds: PositiveInt = 30
    """Wait after which the log names the ranks that are slow or silent."""
    grace_seconds: PositiveInt = 30
    """From SIGTERM to the end of the job: time for the step that is under way and for a checkpoint."""
    resize_seconds: PositiveFloat = 60.0
    """How often an elastic run looks whether it has room for more workers; it then stops with a checkpoint and goes on
    with them."""
    max_failures: NonNegativeInt = 2
    """Restarts of the workers before the run gives up."""

    @property
    def fewest(self) -> int:
        """Workers that a job needs; equal to `most` unless it is elastic."""
        return _range(self.workers)[0]

    @property
    def most(self) -> int:
        """Workers that a training job may have."""
        return _range(self.workers)[1]


class EvaluateSettings(Settings):
    users: PositiveInt = 512
    """Held-out users ranked at a time by a rank."""
    items: PositiveInt = 8192
    """Items scored at a time; no matrix is larger than users × items."""
    metric: Literal["ndcg@100", "recall@20", "recall@50"] = "ndcg@100"
    """What validation compares."""


class ExportSettings(Settings):
    folder: str | None = None
    """Where the export goes; without it `export` in the run folder."""
    values: Literal["float32", "float16"] = "float32"
    """Type of the exported values."""
    format: Literal["parquet", "csr", "ell", "bitmap", "delta", "block", "smallest", "mapped"] = "parquet"
    """How the matrix is stored: for any program (Parquet and SciPy); small, in one of the layouts of export/sizes.py,
    of which `smallest` takes the one with the fewest bytes; or `mapped`, with an index, to answer from its files."""
