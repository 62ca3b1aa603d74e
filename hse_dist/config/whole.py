"""Settings: what a run is, in one frozen object.

In: a TOML file and `section.key=value` overrides. Out: a `Config`, or one `ConfigError` that lists every mistake with
its dotted path. Nothing is started before the whole configuration has been checked.

Settings of one thing stand in one section; the constraint is in the type, the meaning under the field.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from hse_dist.config.base import Settings
from hse_dist.config.checkpoint import CheckpointSettings
from hse_dist.config.contradictions import contradictions
from hse_dist.config.data import DataSettings
from hse_dist.config.follow import FollowSettings
from hse_dist.config.metrics import MetricsSettings
from hse_dist.config.parsing import override, parse_toml, validate
from hse_dist.config.sparsity import SparsitySettings
from hse_dist.config.tables import TablesSettings
from hse_dist.config.train import (
    ClusterSettings,
    EvaluateSettings,
    ExportSettings,
    ModelSettings,
    RunSettings,
    TrainSettings,
)
from hse_dist.errors import ConfigError


class Config(Settings):
    """Everything a run needs to know."""

    run: RunSettings = RunSettings()
    data: DataSettings = DataSettings()
    tables: TablesSettings = TablesSettings()
    model: ModelSettings = ModelSettings()
    sparsity: SparsitySettings = SparsitySettings()
    train: TrainSettings = TrainSettings()
    cluster: ClusterSettings = ClusterSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    export: ExportSettings = ExportSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    metrics: MetricsSettings = MetricsSettings()
    follow: FollowSettings = FollowSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = contradictions(self)
        if problems:
            raise ValueError("\n".join(problems))
        return self


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """The configuration of a TOML file with `section.key=value` overrides.

    Raises:
        ConfigError: the file cannot be read or parsed, or settings are wrong; all mistakes in one message.
    """
    path = Path(path)
    try:
        raw = parse_toml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"There is no configuration file {path}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration file {path} cannot be read: {error}.") from None
    except ValueError as error:
        raise ConfigError(f"The configuration file {path} is not TOML: {error}.") from None
    problems = [problem for text in overrides if (problem := override(raw, text))]
    return parse_config(raw, str(path), problems)


def parse_config(raw: dict[str, Any], origin: str, problems: list[str] | None = None) -> Config:
    """The configuration of a nested dictionary; `problems` found earlier join the same message.

    Raises:
        ConfigError: see `load_config`.
    """
    problems = list(problems or ())
    config, found = validate(Config, raw)
    problems += found
    if problems or config is None:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        mistakes = "mistake" if len(problems) == 1 else "mistakes"
        raise ConfigError(f"{len(problems)} {mistakes} in the configuration {origin}:\n{lines}")
    return config


def dump_config(config: Config) -> str:
    """The resolved configuration as canonical JSON (sorted keys, one a line)."""
    return json.dumps(config.model_dump(mode="json"), indent=2, sort_keys=True) + "\n"
