"""Pretraining: one policy for all tasks, by TRPO, without adaptation; to compare with."""

from typing import Any, ClassVar

from hpc_maml.algorithms.maml_trpo import METRICS, MamlTrpo, TrustRegionSettings


class Pretrain(MamlTrpo):
    """TRPO on the mean of all tasks; its meta-test takes the inner steps that MAML's takes."""

    Settings: ClassVar[type[Any]] = TrustRegionSettings
    metrics = METRICS
    adapts_parameters = False
    num_inner_steps = 0
    first_order = False
