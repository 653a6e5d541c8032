"""The benchmarks: what their yardsticks count, and the plain way beside ours."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, environment, run

from benchmarks.scale import Model, split
from benchmarks.table import compare, show, write
from benchmarks.update import operations
from hpc_maml.config import TrpoConfig
from hpc_maml.algorithms.maml_trpo import linearise, meta_step
from hpc_maml.policies.policy import GaussianMLP
from hpc_maml.sampling.trajectory import Samples


class Counted(np.ndarray):
    """An array that counts the floating-point operations of matrix products."""

    operations = 0

    def __matmul__(self, other):
        return self._product(self, other)

    def __rmatmul__(self, other):
        return self._product(other, self)

    @staticmethod
    def _product(a, b):
        Counted.operations += 2 * a.size * b.shape[-1]
        return np.matmul(np.asarray(a), np.asarray(b)).view(Counted)


def test_the_floor_of_the_outer_step_counts_its_matrix_products():
    policy = GaussianMLP(3, 2, (5, 4), "tanh")
    rng = np.random.default_rng(1)
    theta = 0.5 * rng.standard_normal(policy.size)

    def samples(number):
        fields = {
            "observations": rng.standard_normal((number, 3)),
            "actions": rng.standard_normal((number, 2)),
            "log_probs": rng.standard_normal(number) - 3,
            "advantages": rng.standard_normal(number),
            "weights": np.full(number, 1 / number),
        }
        return Samples(**{name: field.view(Counted) for name, field in fields.items()})

    data = [(samples(7), samples(9)), (samples(6), samples(8))]
    Counted.operations = 0
    groups = [
        linearise(
            policy,
            theta.view(Counted),
            [Samples(*(field[None] for field in inner))],
            Samples(*(field[None] for field in post)),
            (0.1,),
            first_order=False,
        )
        for inner, post in data
    ]
    step = meta_step(
        policy, theta, groups, 2, lambda terms: np.asarray(terms).sum(0), TrpoConfig(cg_iters=4)
    )
    assert step.cg_iterations == 4
    assert step.line_search_steps
    assert Counted.operations == operations(policy, data, step)


def test_a_ratio_is_the_median_of_ratios_taken_side_by_side(tmp_path, capsys):
    row = compare("update", "s", [1.0, 4.0, 3.0], [2.0, 4.0, 1.0], "another")
    assert (row.value, row.yardstick, row.ratio, row.ratio_range) == (3.0, 2.0, 1.0, (0.5, 3.0))
    alone = compare("speed", "steps/s", [5.0, 7.0, 6.0])
    assert (alone.value, alone.yardstick, alone.ratio) == (6.0, None, None)
    write([row, alone], tmp_path / "rows.json")
    assert [each["ratio"] for each in json.loads((tmp_path / "rows.json").read_text())] == [1, None]
    show([row, alone])
    assert "0.50-3.00" in capsys.readouterr().out


def test_the_model_of_scale_by_hand():
    model = Model(
        collect=0.2,
        update=0.1,
        latency=1e-3,
        per_byte=1e-6,
        num_reductions=10,
        reduction_bytes=1000,
        batch_bytes=1,
    )
    assert split(1, 1) == (1, 1)
    assert model.seconds(1, 40, 1) == pytest.approx(40 * 0.3)
    agents, observers = split(64, 64)
    assert (agents, observers) == (16, 47)
    # one task each to collect, three at most for an agent; 2 * 4 messages, 2 * 15/16 of the bytes
    expected = 0.2 + 3 * 0.1 + 10 * (8e-3 + 1.875e-3)
    assert model.seconds(64, 47, 64) == pytest.approx(expected)


@pytest.mark.skipif(not shutil.which("cc"), reason="the yardstick in C needs a C compiler")
def test_rollouts_against_the_same_physics_in_c(tmp_path):
    import mujoco

    from benchmarks import rollout
    from hpc_maml.config import load_config
    from hpc_maml.run.training import make_env, prepare

    folder = Path(mujoco.__file__).parent
    (library,) = folder.glob("libmujoco.so.*")
    program = tmp_path / "physics"
    source = ROOT / "benchmarks" / "yardsticks" / "physics.c"
    flags = [f"-I{folder / 'include'}", str(library), f"-Wl,-rpath,{folder}", "-o", str(program)]
    subprocess.run(["cc", "-O2", str(source), *flags], check=True)
    for name in ("half_cheetah_vel", "ant_vel"):  # the ant falls: episodes of different lengths
        config = load_config(None, [f"env.name={name}", "horizon=60", "fast_batch_size=4"])
        env = make_env(config, config.fast_batch_size)
        steps = rollout.record(prepare(config, env), env, tmp_path)
        assert 0 < steps <= 240
        assert rollout.replay(program, tmp_path, env) > 0  # it compares the final positions


def test_the_plain_way_runs():
    words = ["-m", "benchmarks.plain_iteration", "navigation", "1"]
    result = subprocess.run(
        [sys.executable, *words], check=True, capture_output=True, text=True, env=environment()
    )
    assert float(result.stdout) > 0


def test_bench_starts_its_jobs_itself():
    assert "call it without mpirun" in run(2, "bench", "update", code=2).stderr
    assert "choose from rollout" in run(None, "bench", "speed", code=2).stderr


@pytest.mark.parametrize(("odd", "episodes"), [(100, 40), (50, 60)])
def test_the_published_rule_counts_the_steps_of_ended_episodes(odd, episodes):
    sampled = runpy.run_path(str(ROOT / "benchmarks" / "published_navigation.py"))["sampled"]
    lengths = np.where(np.arange(600) % 2, odd, 100)  # 40 streams, every other of these lengths
    chosen = sampled(lengths)
    assert len(set(chosen)) == len(chosen) == episodes
    assert lengths[chosen].sum() == 4000
    assert chosen.max() < 80


@pytest.mark.parametrize(
    "script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.name
)
def test_scripts_explain_themselves(script):
    result = subprocess.run(
        [sys.executable, script, "--help"],
        env=environment(),
        check=True,
        capture_output=True,
        text=True,
    )
    assert "usage" in result.stdout
