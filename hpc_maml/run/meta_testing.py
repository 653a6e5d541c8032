"""The meta-test of a run that is done or going on, beside other policies on the same tasks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from hpc_maml.config import TopologyConfig, differing_keys
from hpc_maml.errors import InputError
from hpc_maml.storage.meta_tests import RANDOM, RUN, Evaluation, evaluation_path, save
from hpc_maml.mpi.runtime import from_rank_0
from hpc_maml.mpi.topology import Topology
from hpc_maml.sampling.random_streams import Purpose, stream
from hpc_maml.roles.principal import Agents, greet, meta_test, unseen_tasks
from hpc_maml.stopping import StopSignal
from hpc_maml.run.training import DONE, Job, make_env, prepare, run_job


def evaluate(
    world: MPI.Intracomm,
    run_dir: Path,
    settings: Mapping[str, Any],
    episodes: int | None,
    baselines: Sequence[Path],
    json: Path | None,
) -> int:
    """Meta-test the last checkpoint of a run on unseen tasks; return the exit code.

    ``settings`` are keys of EvaluationConfig that differ from the run's, ``episodes`` replace its
    ``fast_batch_size``. Runs in ``baselines`` are tested on the same tasks, as is the policy that
    the run began with. Raises InputError on every rank.
    """
    contestants: dict[str, tuple[np.ndarray, Sequence[float]]] = {}  # parameters and step sizes
    env = iteration = None

    def prepare_test() -> Job:
        from hpc_maml.run.record import flatten, initial_checkpoint, last_checkpoint
        from hpc_maml.storage.run_folder import read_config

        nonlocal env, iteration
        config = read_config(run_dir)
        # The ranks at hand need not be those of the run, and agents only pass batches on.
        update = {
            "topology": TopologyConfig(),
            "device": "cpu",
            "evaluation": config.evaluation.model_copy(update=settings),
        }
        config = config.model_copy(update=update)
        env = make_env(config, episodes=1)
        policy = prepare(config, env).policy
        checkpoint = last_checkpoint(run_dir, config, policy)
        iteration = checkpoint.iteration
        contestants[RUN] = (flatten(checkpoint), config.test_step_sizes)
        random = initial_checkpoint(config, policy)
        contestants[RANDOM] = (flatten(random), config.test_step_sizes)
        for path in baselines:
            other = read_config(path).model_copy(update={"evaluation": config.evaluation})
            keys = [
                key
                for key in differing_keys(config, other)
                if key == "horizon" or key.startswith(("env.", "policy."))
            ]
            if keys:
                raise InputError(
                    f"The run in {path} cannot be tested beside that in {run_dir}: they differ in "
                    f"{', '.join(keys)}."
                )
            name = f"baseline {path.resolve().name}"
            if name in contestants:
                raise InputError(f"Two baselines are called {path.name}: rename a folder.")
            theta = flatten(last_checkpoint(path, other, policy))
            contestants[name] = (theta, other.test_step_sizes)
        if episodes:
            config = config.model_copy(update={"fast_batch_size": episodes})
        return prepare(config, env)

    job = from_rank_0(world, prepare_test)

    async def principal(agents: Agents, topology: Topology) -> None:
        from hpc_maml.run import console
        from hpc_maml.envs.oracles import optima
        from hpc_maml.storage.run_folder import EVALUATIONS

        config = job.config
        await greet(topology.world)
        tasks = unseen_tasks(config, env)
        returns = {
            name: await meta_test(agents, tasks, *contestant)
            for name, contestant in contestants.items()
        }
        await agents.dismiss()
        luck = stream(config.seed, Purpose.STRATEGIES)
        found = Evaluation(
            iteration, config.test_step_sizes, tasks, returns, optima(env, tasks, luck)
        )
        console.print_meta_test(found, json)
        folder = run_dir / EVALUATIONS
        save(evaluation_path(folder, iteration, config.evaluation, episodes), found)

    run_job(world, job, principal, StopSignal())
    return DONE
