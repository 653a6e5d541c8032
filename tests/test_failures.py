"""Promise 3: nothing hangs; a failure anywhere ends the job at once, and says where it was."""

import subprocess
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import FAULT, HERE, SMALL, run, start

from hpc_maml.envs import make
from hpc_maml.envs.navigation import Navigation
from hpc_maml.policies import make_policy
from hpc_maml.policies.mlp import MLPSettings
from hpc_maml.sampling.rollout import Play, roll_out
from hpc_maml.sampling.trajectory import batch_dtype

slow = pytest.mark.slow


def run_with_fault(ranks, rank, module, function, count, action, *settings, limit=10.0):
    """Start a job with a planted fault; return its output when it has ended by itself."""
    folder = Path.cwd() / "run"
    job = start(
        ranks,
        *map(str, (rank, module, function, count, action)),
        *SMALL,
        "num_iterations=1000",
        "--run-dir",
        str(folder),
        *settings,
        python=(FAULT,),
    )
    try:
        out, err = job.communicate(timeout=60 + limit)
    finally:
        job.terminate()  # if it still runs
    assert time.time() - float(Path("fault_at").read_text()) < limit
    while subprocess.run(["pgrep", "-f", str(folder)], capture_output=True, check=False).stdout:
        assert time.time() - float(Path("fault_at").read_text()) < limit, "orphans"
        time.sleep(0.1)
    assert job.returncode not in (0, 2, 75), out + err
    return out, err


# With two agents: ranks 0, 1, 2 are principal and agents in the split layout; in teams, ranks 0
# and 1 are one team, 2 to 4 another.
FAULTS = [
    (0, "principal", "hpc_maml.run.record", "RunRecord.record", 2),
    (1, "agent split", "hpc_maml.algorithms.maml_trpo", "MamlTrpo.update", 2),
    (1, "observer", "hpc_maml.algorithms.maml_trpo", "MamlTrpo.update", 2),
    (4, "observer", "hpc_maml.algorithms.inner_steps", "adapt", 2),
    (1, "start-up", "hpc_maml.run.job", "build_topology", 1),
]
MORE_FAULTS = [
    (0, "principal", "hpc_maml.roles.principal", "summarise", 1),
    (0, "principal", "hpc_maml.storage.checkpoint", "write_hdf5", 3),
    (1, "agent split", "hpc_maml.algorithms.maml_trpo", "MamlTrpo.digest", 1),
    (1, "observer", "hpc_maml.algorithms.maml_trpo", "MamlTrpo.digest", 1),
    (2, "agent split", "hpc_maml.mpi.exact_sum", "ExactSum.__call__", 9),
    (3, "observer", "hpc_maml.mpi.exact_sum", "ExactSum.__call__", 9),
    (2, "agent split", "hpc_maml.roles.agent", "task_result", 4),
    (2, "agent", "hpc_maml.roles.agent", "agreed", 1),
    (3, "observer", "hpc_maml.algorithms.collection", "roll_out", 1),
    (3, "observer split", "hpc_maml.mpi.exchange", "BatchSender.send", 3),
    (4, "observer", "hpc_maml.run.job", "make_env", 1),
    (0, "start-up", "hpc_maml.run.training", "prepare", 1),
]


@pytest.mark.parametrize(
    ("rank", "role", "module", "function", "count"),
    [*FAULTS, *(pytest.param(*fault, marks=slow) for fault in MORE_FAULTS)],
)
def test_an_exception_ends_the_job_with_one_traceback(rank, role, module, function, count):
    role, _, layout = role.partition(" ")
    words = ("topology.agents=2", f"topology.layout={layout or 'team'}")
    _, err = run_with_fault(5, rank, module, function, count, "raise", *words)
    assert err.count("Traceback (most recent call last)") == 1, err
    assert f"hpc_maml: rank {rank} ({role}) on " in err
    assert "RuntimeError: planted fault" in err


class Broken(Navigation):
    """Navigation whose steps fail, on every rank."""

    def step(self, actions):
        raise ArithmeticError("no such step")


def test_an_exception_that_many_ranks_meet_is_told_by_one():
    failed = run(4, *SMALL, "env.name=test_failures:Broken", "--run-dir", "run", code=1)
    assert failed.stderr.count("Traceback (most recent call last)") == 1, failed.stderr
    assert "hpc_maml: rank 0 (observer) on " in failed.stderr


def test_an_exception_in_a_serial_run_names_the_role():
    _, err = run_with_fault(None, 0, "hpc_maml.algorithms.collection", "roll_out", 3, "raise")
    assert "hpc_maml: rank 0 (observer) on " in err


@pytest.mark.parametrize("rank", [3, *(pytest.param(n, marks=slow) for n in (0, 1))])
def test_a_killed_rank_ends_the_job(rank):
    module, function = {
        0: ("hpc_maml.roles.principal", "summarise"),
        1: ("hpc_maml.algorithms.maml_trpo", "MamlTrpo.update"),
        3: ("hpc_maml.algorithms.inner_steps", "adapt"),
    }[rank]
    run_with_fault(4, rank, module, function, 2, "kill")


@pytest.mark.parametrize("seconds", [8, pytest.param(15, marks=slow)])
def test_a_wait_has_a_limit_and_says_for_what(seconds):
    words = ("hpc_maml.algorithms.inner_steps", "adapt", 2, "hang", f"mpi.wait_limit={seconds}")
    _, err = run_with_fault(3, 2, *words, limit=2 * seconds)
    assert f"TimeoutError: waited {seconds} s for " in err
    assert err.count("Traceback") == 1
    assert "for tasks from the observers" in err or "for the outcome of an agent" in err


@slow
def test_a_suspended_job_goes_on():
    folder = Path.cwd() / "run"
    words = (*SMALL, "num_iterations=30", "mpi.wait_limit=6", "--run-dir", str(folder))
    job = start(3, *words)
    while not (folder / "metrics.h5").exists():
        assert job.poll() is None
        time.sleep(0.01)
    for signal, pause in (("-STOP", 8), ("-CONT", 0)):
        subprocess.run(["pkill", signal, "-f", f"hpc_maml .*{folder}"], check=True)
        time.sleep(pause)
    out, err = job.communicate(timeout=60)
    assert job.returncode == 0, err
    assert "done: 30 iterations" in out


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_diverged_adaptation_is_a_rejected_update():
    words = ("algorithm.fast_lr=1e30", "num_iterations=3", "checkpoint.keep=9", "--run-dir", "run")
    result = run(HERE, *SMALL, *words)
    assert result.stdout.count("UPDATE REJECTED: non-finite gradient") == 3
    with h5py.File("run/metrics.h5") as file:
        assert file["iterations/rejected_updates"][...].tolist() == [1, 2, 3]
        assert file["iterations/accepted"][...].tolist() == [0, 0, 0]
    contents = []
    for path in sorted(Path("run/checkpoints").iterdir()):
        with h5py.File(path) as file:
            parameters = file["parameters"]
            contents.append({name: parameters[name][...].tobytes() for name in parameters})
    assert len(contents) == 3
    assert contents[0] == contents[1] == contents[2]


def test_an_episode_that_the_simulator_gives_up_is_counted_and_shown(monkeypatch):
    env = make("half_cheetah_vel", num_tasks=1, episodes_per_task=3, horizon=5)
    policy = make_policy(MLPSettings(hidden_sizes=[4]), 17, 6, discrete=False)
    batch = np.zeros(1, batch_dtype(5, 3, (17,), (6,), np.float32))
    generators = [np.random.default_rng(1)]
    step = env.step

    def diverging(actions):
        env.simulations.bind("qvel")[1] = 1e12  # MuJoCo gives up such a state
        return step(actions)

    monkeypatch.setattr(env, "step", diverging)
    env.set_tasks(np.ones((1, 1)))
    theta = policy.initial_parameters(np.random.default_rng(0))[None]
    roll_out(policy, env, Play(theta), generators, generators, batch)
    assert batch["diverged"].tolist() == [1]
    assert batch["lengths"].tolist() == [[5, 1, 5]]


def test_choices_of_a_diverged_policy_pay_nan():
    env = make("bandit", num_tasks=1, episodes_per_task=3, horizon=4)
    policy = make_policy(MLPSettings(hidden_sizes=[4]), 1, 5, discrete=True)
    batch = np.zeros(1, batch_dtype(4, 3, (1,), (), np.int64))
    generators = [np.random.default_rng(1)]
    env.set_tasks(np.full((1, 5), 0.5))
    theta = np.full((1, policy.size), np.nan, np.float32)
    roll_out(policy, env, Play(theta), generators, generators, batch)
    assert np.isnan(batch["rewards"]).all()
    batch = np.zeros(1, batch_dtype(4, 3, (1,), (), np.int64))
    roll_out(policy, env, Play(np.zeros_like(theta)), generators, generators, batch)
    assert np.isfinite(batch["rewards"]).all()
