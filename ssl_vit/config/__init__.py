"""The configuration of a run is typed, strict, and the same from YAML, the command line and Python. Needs no torch."""

from ssl_vit.config.load import FLAGS, dump, load_config
from ssl_vit.config.paths import check_data, check_out
from ssl_vit.config.schema import (
    AdaptConfig,
    BackboneConfig,
    DataConfig,
    HealthConfig,
    OptimConfig,
    ResolvedConfig,
    RunConfig,
    TrainConfig,
)

__all__ = [
    "FLAGS",
    "AdaptConfig",
    "BackboneConfig",
    "DataConfig",
    "HealthConfig",
    "OptimConfig",
    "ResolvedConfig",
    "RunConfig",
    "TrainConfig",
    "check_data",
    "check_out",
    "dump",
    "load_config",
]
