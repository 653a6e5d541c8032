"""Pretraining: one policy for all tasks, by TRPO, without adaptation; to compare with."""

from typing import Any, ClassVar

from pydantic import Field

from hpc_maml.algorithms.algorithm import NAME
from hpc_maml.algorithms.maml_trpo import METRICS, MamlTrpo, TrustRegionSettings


class PretrainSettings(TrustRegionSettings):
    """The keys of pretraining; ``fast_lr`` is for meta-tests."""

    name: str = Field("pretrain", description=NAME)


class Pretrain(MamlTrpo):
    """TRPO on the mean of all tasks; its meta-test takes the inner steps that MAML's takes."""

    Settings: ClassVar[type[Any]] = PretrainSettings
    metrics = METRICS
    adapts_parameters = False
    num_inner_steps = 0
    first_order = False
    inner_loss = "reinforce"
