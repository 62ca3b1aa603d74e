"""All settings, by section; `Config` is the whole of them."""

from hse_dist.config.base import Settings
from hse_dist.config.checkpoint import CheckpointSettings
from hse_dist.config.contradictions import FALLING
from hse_dist.config.data import ColumnNames, DataSettings, SplitSettings, StreamSettings, SyntheticSettings
from hse_dist.config.features import FeatureSettings, FeatureTableSettings
from hse_dist.config.follow import FollowSettings
from hse_dist.config.metrics import MetricsSettings
from hse_dist.config.sparsity import (
    BudgetSettings,
    DropSettings,
    GrowSettings,
    HseSettings,
    LocalInverseSettings,
    ScheduleSettings,
    SparsitySettings,
    StructureSettings,
)
from hse_dist.config.tables import MAX_DIMS, TableSettings, TablesSettings, WireSettings
from hse_dist.config.train import (
    ClusterSettings,
    EvaluateSettings,
    ExportSettings,
    ModelSettings,
    RunSettings,
    TrainSettings,
)
from hse_dist.config.whole import Config, dump_config, load_config, parse_config

__all__ = [
    "FALLING",
    "MAX_DIMS",
    "BudgetSettings",
    "CheckpointSettings",
    "ClusterSettings",
    "ColumnNames",
    "Config",
    "DataSettings",
    "DropSettings",
    "EvaluateSettings",
    "ExportSettings",
    "FeatureSettings",
    "FeatureTableSettings",
    "FollowSettings",
    "GrowSettings",
    "HseSettings",
    "LocalInverseSettings",
    "MetricsSettings",
    "ModelSettings",
    "RunSettings",
    "ScheduleSettings",
    "Settings",
    "SparsitySettings",
    "SplitSettings",
    "StreamSettings",
    "StructureSettings",
    "SyntheticSettings",
    "TableSettings",
    "TablesSettings",
    "TrainSettings",
    "WireSettings",
    "dump_config",
    "load_config",
    "parse_config",
]
