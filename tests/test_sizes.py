"""Sizes that are too large: refused in one sentence, before anything is computed or killed."""

import time
from pathlib import Path

import pytest
from conftest import BAD_INPUT, HERE, SMALL, run

from hpc_maml.config import load_config
from hpc_maml.mpi.topology import Seat, plan_roles
from hpc_maml.run import memory
from hpc_maml.run.doctor import examine, look
from hpc_maml.run.job import make_env, prepare
from hpc_maml.run.memory import Needs

GRU = ("algorithm.name=rl2", "policy.name=gru")


@pytest.mark.parametrize("size", [10**9, 10**12, 10**40])
@pytest.mark.parametrize(
    "words",
    [
        ("horizon={}",),
        ("fast_batch_size={}",),
        ("meta_batch_size={}",),
        ("algorithm.num_inner_steps={}",),
        ("algorithm.cg_iters={}",),
        ("algorithm.ls_max_steps={}",),
        ("algorithm.name=promp", "algorithm.adam_steps={}"),
        (*GRU, "algorithm.epochs={}"),
        (*GRU, "algorithm.minibatches={}"),
        (*GRU, "algorithm.episodes_per_trial={}"),
        (*GRU, "policy.hidden_size={}"),
        ("policy.hidden_sizes=[{}]",),
        ("evaluation.every=1", "evaluation.updates={}"),
        ("evaluation.every=1", "evaluation.tasks={}"),
        ("env.name=bandit", "env.kwargs={{arms: {}}}", "policy.hidden_sizes=[]"),
        ("num_iterations={}0",),
    ],
)
def test_what_is_too_large_is_refused_at_once(words, size):
    began = time.process_time()
    error = run(HERE, *(word.format(size) for word in words), code=BAD_INPUT).stderr
    assert error.count("\n") == 1
    assert time.process_time() - began < 2
    assert not list(Path.cwd().iterdir())


def test_many_layers_are_refused():
    error = run(HERE, f"policy.hidden_sizes={[1] * 1000}", code=BAD_INPUT).stderr
    assert "'policy.hidden_sizes'" in error
    assert error.count("\n") == 1


def test_sizes_of_a_test(copied):
    for option, size in (("--tasks", 10**9), ("--updates", 10**9), ("--episodes", 10**9)):
        error = run(HERE, "evaluate", copied, option, size, code=BAD_INPUT).stderr
        assert "must be at most" in error or "must be below 2 GB" in error


def test_a_long_run_starts_at_once():
    """Nothing counts to the number of iterations."""
    words = [*SMALL, "num_iterations=1000000000", "archive.rollouts=every"]
    config = load_config(None, words)
    began = time.process_time()
    memory.needs(prepare(config, make_env(config, 1)))
    error = run(HERE, *words, "archive.max_bytes=1000000", code=BAD_INPUT).stderr
    assert "The rollouts of 1000000000 iterations take" in error
    assert time.process_time() - began < 5


def test_needs_by_hand():
    """Of 10 tasks with batches of 1 GB in each of two phases, on one agent and two observers.

    The simulations of an observer take 100 MB.
    """
    needs = Needs(tasks=10, task=2 * 10**9, batch=10**9, state=0, simulations=10**8)
    seats = [Seat(0), Seat(0), Seat(0), Seat(1)]
    plan = plan_roles(seats, 1, "split")
    assert [place.roles for place in plan.places] == [
        ("principal",),
        ("agent",),
        ("observer",),
        ("observer",),
    ]
    least, probable = memory.of_node(needs, plan, [0, 1, 2])
    assert least == 3 * 40e6 + 20e9 + 1e9
    assert probable == 3 * 100e6 + (20e9 + 1e9 + 20e9) + 3 * 2e9 + 2e8
    assert memory.of_node(needs, plan, [3])[0] == 40e6 + 1e9
    team = plan_roles(seats, "auto", "team")
    assert memory.of_node(needs, team, [0, 1, 2])[0] == 3 * (40e6 + 3 * 2e9 + 1e9)


def test_the_needs_of_a_configuration():
    config = load_config(None, ["horizon=1000000"])
    needs = memory.needs(prepare(config, make_env(config, 1)))
    # observation 8, action 8, reward, log-probability and advantage 4 each, two ends
    assert needs.batch == pytest.approx(20 * 10**6 * (8 + 8 + 3 * 4 + 2), rel=1e-4)
    assert needs.task == 2 * needs.batch
    assert (needs.tasks, needs.simulations) == (20, 0)
    config = load_config(None, ["env.name=ant_vel", "env.kwargs.lineage=original"])
    needs = memory.needs(prepare(config, make_env(config, 1)))
    assert needs.simulations == 10 * 20 * 600e3


def test_the_limit_of_a_node(tmp_path):
    def of(**slurm: int) -> tuple[int, str]:
        names = {f"SLURM_{name}": str(value) for name, value in slurm.items()}
        return memory.available(names, tmp_path)

    physical = of()
    assert physical[1] == "physical memory"
    assert physical[0] > 10**8
    assert of(MEM_PER_NODE=100) == (100 * 2**20, "Slurm, --mem")
    assert of(MEM_PER_NODE=0) == physical
    assert of(MEM_PER_CPU=10, CPUS_ON_NODE=3) == (30 * 2**20, "Slurm, --mem-per-cpu")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/user/job_1/step_0\n")
    group = tmp_path / "sys/fs/cgroup/user/job_1"
    (group / "step_0").mkdir(parents=True)
    (group / "step_0/memory.max").write_text("max\n")
    (group / "memory.max").write_text("5000000\n")
    assert of(MEM_PER_NODE=100) == (5_000_000, "control group")
    (tmp_path / "proc/self/cgroup").write_text("7:cpu,memory:/slurm\n1:cpu:/x\n")
    group = tmp_path / "sys/fs/cgroup/memory/slurm"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("4000000\n")
    assert of(MEM_PER_NODE=100) == (4_000_000, "control group")


@pytest.mark.parametrize("ranks", [HERE, 3])
def test_a_job_that_cannot_fit_does_not_start(ranks, monkeypatch):
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "30")
    words = (*SMALL, "num_iterations=1", "--run-dir", "run")
    limit = {} if ranks == HERE else {"SLURM_MEM_PER_NODE": "30"}
    error = run(ranks, *words, code=BAD_INPUT, **limit).stderr
    assert "memory: " in error
    assert "of 31.5 MB (Slurm, --mem): use more nodes or more memory, or smaller horizon" in error
    assert error.count("\n") == 1
    assert not list(Path("run").glob("checkpoints/*"))


@pytest.mark.parametrize("words", [("evaluate",), ("demo", "-o", "demo.png")])
def test_a_test_or_demo_that_cannot_fit_does_not_start(words, copied, monkeypatch):
    before = sorted(copied.rglob("*"))
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "30")
    error = run(HERE, words[0], copied, *words[1:], code=BAD_INPUT).stderr
    assert "memory: " in error
    assert "at least 40.0 MB of 31.5 MB (Slurm, --mem)" in error
    assert error.count("\n") == 1
    assert sorted(copied.rglob("*")) == before
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "200")
    size = ("--episodes", 1_000_000) if words[0] == "evaluate" else ()
    done = run(HERE, words[0], copied, *words[1:], *size, code=BAD_INPUT if size else 0)
    assert ("memory: " in done.stderr) == bool(size)


def test_the_needs_of_a_meta_test():
    config = load_config(None, [*SMALL, "evaluation.updates=3"])
    job = prepare(config, make_env(config, 1))
    found = memory.needs_of_test(job)
    assert (found.tasks, found.batch) == (0, 4 * job.dtype.itemsize)
    (place,) = plan_roles([Seat(0)], "auto", "auto").places
    plan = plan_roles([Seat(0)], "auto", "auto")
    assert found.of_rank(place, plan)[0] == memory.PROGRAM_ALONE + found.batch


def test_the_doctor_shows_memory():
    facts = look({"SLURM_MEM_PER_NODE": "150"})
    config = load_config(None, SMALL)
    levels = [
        next(c.level for c in examine([facts], config, needs) if c.subject == "memory")
        for needs in (Needs(1, 1, 1, 1), Needs(1, 10**7, 10**6, 1), Needs(1, 10**9, 10**9, 1))
    ]
    assert levels == ["ok", "warning", "error"]
