"""Gymnasium's moon lander in the wind and turbulence of the task."""

import importlib.util
from collections.abc import Mapping
from typing import Any, ClassVar

from hpc_maml.envs.foreign import maker_of_id
from hpc_maml.envs.parameter_tasks import ParameterTasks

TASK_RANGES = {"wind_power": (0.0, 20.0), "turbulence_power": (0.0, 2.0)}
GRAVITY_RANGE = (-12.0, -6.0)


class Lander(ParameterTasks):
    """Land softly; the task is (wind power, turbulence power), and gravity if that varies too."""

    # Episodes are shorter than Gymnasium's limit of 1000 steps.
    defaults: ClassVar[Mapping[str, Any]] = {
        "num_iterations": 300,
        "meta_batch_size": 40,
        "horizon": 300,
    }

    def __init__(
        self,
        *,
        num_tasks: int,
        episodes_per_task: int,
        horizon: int | None = None,
        num_threads: int = 1,
        continuous: bool = True,
        vary_gravity: bool = False,
        render_mode: str | None = None,
    ) -> None:
        """Make the batch; ValueError without Box2D, and for what is not true or false."""
        for name, value in (("continuous", continuous), ("vary_gravity", vary_gravity)):
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be true or false, not {value!r}")
        if importlib.util.find_spec("Box2D") is None:
            raise ValueError("the lander needs Box2D: pip install 'hpc_maml[box2d]'")
        super().__init__(
            maker_of_id("LunarLander-v3"),
            {
                "num_tasks": num_tasks,
                "episodes_per_task": episodes_per_task,
                "horizon": horizon,
                "num_threads": num_threads,
            },
            {"continuous": continuous, "enable_wind": True, "render_mode": render_mode},
            TASK_RANGES | ({"gravity": GRAVITY_RANGE} if vary_gravity else {}),
        )
