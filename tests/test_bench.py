"""The benchmarks: what their yardsticks count, and the plain way beside ours."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, environment, run

from benchmarks import estimators, iteration, step, update
from benchmarks.table import compare, show, write
from hpc_maml import open_run
from hpc_maml.algorithms import Sampling
from hpc_maml.algorithms.algorithm import THETA
from hpc_maml.algorithms.maml_trpo import MamlTrpo, MamlTrpoSettings
from hpc_maml.config import load_config
from hpc_maml.errors import InputError
from hpc_maml.parts import make_env
from hpc_maml.policies import make_policy
from hpc_maml.policies.mlp import MLPSettings
from hpc_maml.run.job import prepare
from hpc_maml.sampling.trajectory import Trajectories, batch_dtype, samples, trajectories


class Counted(np.ndarray):
    """An array that counts the floating-point operations of matrix products."""

    operations = 0

    def __matmul__(self, other):
        return self._product(self, other)

    def __rmatmul__(self, other):
        return self._product(other, self)

    @staticmethod
    def _product(a, b):
        if b.ndim > 1 and a.shape[-2] > 1:  # else a sum, as a product with ones
            Counted.operations += 2 * a.size * b.shape[-1]
        return np.matmul(np.asarray(a), np.asarray(b)).view(Counted)


def phase(rng, horizon, episodes):
    """Return the episodes of one task, arrays [1, ...] whose products are counted."""
    batch = np.zeros(1, batch_dtype(horizon, episodes, (3,), (2,), np.float32))
    for name in ("observations", "actions", "advantages"):
        batch[name] = rng.standard_normal(batch[name].shape)
    batch["log_probs"] = rng.standard_normal(batch["log_probs"].shape) - 3
    batch["lengths"] = horizon
    return Trajectories(*(field.view(Counted) for field in trajectories(batch)))


def test_the_floor_of_the_outer_step_counts_its_matrix_products():
    policy = make_policy(MLPSettings(hidden_sizes=[5, 4]), 3, 2, discrete=False)
    settings = MamlTrpoSettings(cg_iters=4)
    algorithm = MamlTrpo(settings, policy, Sampling(3, 0.99, 1.0, 1, "halved"))
    rng = np.random.default_rng(1)
    theta = (0.5 * rng.standard_normal(policy.size)).astype(np.float32)
    tasks = [[phase(rng, 7, 3), phase(rng, 9, 3)], [phase(rng, 6, 3), phase(rng, 8, 3)]]
    Counted.operations = 0
    step = update.outer_step(algorithm, {THETA: theta.view(Counted)}, tasks)
    assert step.metrics["cg_iterations"] == 4
    assert step.metrics["line_search_steps"]
    each = [[samples(update.one(part)) for part in task] for task in tasks]
    assert Counted.operations == update.operations(policy.network, each, step.metrics)


@pytest.mark.parametrize("name", ["maml_trpo", "promp", "rl2"])
def test_the_outer_step_of_any_algorithm(name, monkeypatch):
    small = ("env.name=navigation", "meta_batch_size=3", "fast_batch_size=2", "horizon=5")
    monkeypatch.setattr(update, "SIZE", small)
    rows = update.measure(2, name)
    assert all(row.value > 0 and row.ratio > 0 for row in rows)
    assert len(rows) == (5 if name == "maml_trpo" else 1)


def test_a_ratio_is_the_median_of_ratios_taken_side_by_side(tmp_path, capsys):
    row = compare("update", "s", [1.0, 4.0, 3.0], [2.0, 4.0, 1.0], "another")
    assert (row.value, row.yardstick, row.ratio, row.ratio_range) == (3.0, 2.0, 1.0, (0.5, 3.0))
    alone = compare("speed", "steps/s", [5.0, 7.0, 6.0])
    assert (alone.value, alone.yardstick, alone.ratio) == (6.0, None, None)
    write([row, alone], tmp_path / "rows.json")
    assert [each["ratio"] for each in json.loads((tmp_path / "rows.json").read_text())] == [1, None]
    show([row, alone])
    assert "0.50-3.00" in capsys.readouterr().out


@pytest.mark.skipif(not shutil.which("cc"), reason="the yardstick in C needs a C compiler")
def test_rollouts_against_the_same_physics_in_c(tmp_path):
    import mujoco

    from benchmarks import rollout

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


def started(module: str, *words: str, code: int = 0, cwd: Path = ROOT):
    """Run a module of the benchmarks to its end and check its exit code."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *words]
    result = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment(), cwd=cwd
    )
    assert result.returncode == code, result.stderr
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", iteration.JOBS)
def test_the_plain_way_runs(name):
    small = ["meta_batch_size=2", "fast_batch_size=2", "horizon=5"]
    assert float(started("plain_iteration", name, "1", *small).stdout) > 0


def test_bench_starts_its_jobs_itself():
    assert "call it without mpirun" in run(2, "bench", "update", code=2).stderr
    assert "choose from rollout" in run(None, "bench", "speed", code=2).stderr


def test_the_clock_of_a_job(tmp_path):
    """Started in an empty folder, like all jobs here: the benchmarks find themselves."""
    small = ["fast_batch_size=2", "meta_batch_size=2", "horizon=5", "archive.rollouts=none"]
    found = iteration.medians(2, small, iterations=1)
    assert set(found) == set(iteration.PHASES)
    assert found["iteration_seconds"] > 0


def test_the_parts_of_a_job(monkeypatch):
    given = []
    monkeypatch.setattr(iteration, "medians", lambda *words, **more: given.append((words, more)))
    iteration.phases("navigation", "8 agents=2 split cores=1 fisher_fraction=0.25")
    ((ranks, settings), more) = given[0]
    assert (ranks, more) == (8, {"cores": 1})
    assert settings[-3:] == [
        "topology.agents=2",
        "topology.layout=split",
        "algorithm.fisher_fraction=0.25",
    ]
    assert load_config(None, settings).algorithm.fisher_fraction == 0.25
    iteration.phases("navigation", "2 published")
    ((_, settings), _) = given[1]
    assert load_config(None, settings).algorithm.cg_iters == 10


def test_benchmarks_come_with_the_checkout(tmp_path):
    """A plain installation is a copy of the package alone."""
    shutil.copytree(ROOT / "hpc_maml", tmp_path / "installed" / "hpc_maml")
    (tmp_path / "elsewhere").mkdir()

    def bench(folder):
        command = [sys.executable, "-P", "-m", "hpc_maml", "bench", "update"]
        words = ["--algorithm", "none", "--rounds", "1"]
        result = subprocess.run(
            [*command, *words],
            check=False,
            capture_output=True,
            text=True,
            env=environment(PYTHONPATH=str(tmp_path / "installed")),
            cwd=folder,
        )
        assert result.returncode == 2
        return result.stderr

    expected = "hpc_maml: The benchmarks come with the checkout: call this in its folder.\n"
    assert bench(tmp_path / "elsewhere") == expected
    assert "no algorithm 'none'" in bench(ROOT)


@pytest.mark.slow
def test_the_benchmark_of_the_gpu_runs_and_agrees():
    """At a size at which nothing is measured, and with tensors in memory of the host."""
    words = ["--parts", "outer_step", "agreement", "reduction", "--tasks", "2", "--horizon", "10"]
    words += ["--episodes", "5", "--agreement-tasks", "2", "--device", "cpu"]
    command = [sys.executable, "-m", "benchmarks.gpu", *words]
    job = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment(), cwd=ROOT
    )
    missed = [line for line in job.stderr.splitlines() if line.startswith("missed:")]
    # slow it may be
    assert missed in ([], ["missed: outer_step"]), job.stderr
    assert job.returncode == bool(missed), job.stderr
    rows = {each["name"]: each for each in json.loads(job.stdout)}
    for name in ("gradient", "fisher_vector_product", "kl_after", "step"):
        assert 0 < rows[f"relative_error_of_{name}"]["ratio"] < 1
    assert rows["device_reduction_bits_23_KB"]["value"] == 1


@pytest.mark.slow
def test_the_benchmark_of_the_gpu_samples():
    words = ["--parts", "sampling", "--observers", "1", "--device", "cpu"]
    found = json.loads(started("gpu", *words, "--horizon", "5", "--episodes", "2", code=0).stdout)
    assert [each["value"] > 0 for each in found] == [True, True]


def test_the_benchmark_of_the_gpu_needs_one():
    command = [sys.executable, "-m", "benchmarks.gpu"]
    job = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        env=environment(CUDA_VISIBLE_DEVICES=""),
        cwd=ROOT,
    )
    assert (job.returncode, job.stdout) == (1, "")
    assert job.stderr == (
        "benchmarks/gpu.py: torch finds no GPU here, so there is nothing to measure.\n"
    )


SMALL_CHEETAH = ("fast_batch_size=2", "horizon=5")


def test_the_memory_of_an_agent():
    words = [*SMALL_CHEETAH, "--tasks", "2", "3", "--iterations", "2"]
    found = started("memory", *words).stdout
    assert "after iteration 2: " in found
    assert "3 tasks: batches " in found


def test_what_shipping_costs():
    found = started("shipping", *SMALL_CHEETAH, "meta_batch_size=2", "num_iterations=1").stdout
    assert found.splitlines()[-1].startswith("rank 0: collecting ")
    assert float(found.split("collecting ")[1].split()[0]) > 0
    assert float(found.split("sending ")[1].split()[0]) > 0


@pytest.mark.slow
def test_what_the_archive_costs():
    words = ["--rounds", "1", "--iterations", "1", "--ranks", "2", "--limit", "1000"]
    found = started("archive", *words, *SMALL_CHEETAH, "meta_batch_size=2").stdout
    assert found.splitlines()[-1].startswith("median: every ")


TINY = ("env.name=navigation", "fast_batch_size=4", "horizon=10", "policy.hidden_sizes=[3]")


def test_no_direction_is_better_than_the_exact_one():
    """In 19 dimensions, where the Fisher matrix can be written down and inverted."""
    point = step.Point([], [*TINY, "algorithm.cg_damping=0"], 3)
    point.collect(None, 0)
    judges = point.judge(point.train), point.judge(point.held)
    best = []
    for judge in judges:
        unit = np.eye(len(judge.gradient))
        fisher = np.stack([judge.tasks.fisher_vector_product(row) for row in unit])
        exact = np.linalg.solve(fisher, judge.gradient)
        quality, residual = judge.quality(exact)
        assert quality == pytest.approx(np.sqrt(judge.gradient @ exact), rel=1e-3)
        assert residual < 1e-3
        best.append(quality)
    for group in ((), ("algorithm.cg_preconditioner=kronecker",)):
        rows = point.directions(group, [1, 2, 4, 8, 40], judges, 1.0)
        train, held = (np.array([getattr(row, side) for row in rows]) for side in ("train", "held"))
        # conjugate gradient finds the best direction of a subspace that grows
        assert (np.diff(train) > 0).all()
        assert train[0] < 0.9 * best[0]
        assert train[-1] == pytest.approx(best[0], rel=0.05)
        assert train.max() <= best[0] * 1.001
        assert held.max() < best[1]
        assert rows[-1].residual < 0.1 < rows[0].residual
        assert (np.diff([row.seconds for row in rows[::2]]) > 0).all()


def test_directions_at_a_checkpoint(tmp_path):
    """The first set is what the run itself collected next."""
    sizes = ["num_iterations=3", "meta_batch_size=3", "device=cpu", "checkpoint.keep=3"]
    run(None, *TINY, *sizes, "--run-dir", "run", "metrics.tensorboard=off", "checkpoint.every=1")
    words = ["--run", str(tmp_path / "run"), "--checkpoint", "2", "--tasks", "3"]
    row = ["--row", "algorithm.cg_iters=2", "algorithm.cg_preconditioner=kronecker"]
    files = ["--json", str(tmp_path / "found.json"), "--picture", str(tmp_path / "q.svg")]
    fewer = ["--row", "meta_batch_size=2", "--products", "1", "3"]
    said = started("step", *words, *row, *fewer, *files).stdout
    assert "after 2 iterations, two sets of 3 tasks" in said
    found = json.loads((tmp_path / "found.json").read_text())
    columns = open_run(tmp_path / "run").columns
    assert found["gradient_snr"] == pytest.approx(columns["gradient_snr"][2], rel=1e-4)
    assert [(each["settings"], each["products"]) for each in found["rows"]] == [
        ("algorithm.cg_preconditioner=kronecker", 2),
        ("meta_batch_size=2", 1),
        ("meta_batch_size=2", 3),
    ]
    assert all(each["seconds"] > 0 and each["train"] > 0 for each in found["rows"])
    drawn = (tmp_path / "q.svg").read_text()
    assert "</svg>" in drawn
    assert "mathdefault" not in drawn  # numbers at the axes, not how TeX writes them


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--row", "fast_batch_size=2"], "A row cannot set fast_batch_size"),
        (["--row", "algorithm.fast_lr=0.5"], "A row cannot set algorithm.fast_lr"),
        (["--row", "meta_batch_size=3"], "more than 2 tasks"),
        (["algorithm.name=promp"], "Only an outer step by TRPO"),
    ],
)
def test_directions_that_cannot_be_compared(words, said):
    with pytest.raises(InputError, match=said):
        step.measure(step.options_of([*TINY, "--tasks", "2", *words]))


def test_the_sum_over_all_trajectories_is_the_expected_reward():
    (process,), policy, theta = estimators.draw(3, 1, horizon=4)
    _, _, chances = estimators.all_trajectories(process)
    assert chances.sum() == pytest.approx(estimators.ACTIONS**4)  # of each sequence of actions
    states = np.eye(estimators.STATES)
    played = np.exp(policy.forward(policy.unflatten(theta), states))
    where, total = states[0], 0.0
    for _ in range(4):
        total += where @ (played * process.rewards).sum(1)
        where = where @ (played[:, :, None] * process.transitions).sum(1)
    found = estimators.expected_reward(process, torch.tensor(theta))
    assert found.item() == pytest.approx(total / 4, rel=1e-12)


def test_bias_and_deviation_by_hand():
    found = np.array([[1.0, 0.0], [3.0, 0.0], [2.0, 3.0], [2.0, -3.0]])  # mean (2, 0)
    of = estimators.quality(found, np.array([0.0, 2.0]))
    assert of.deviation == pytest.approx(np.sqrt((1 + 1 + 9 + 9) / 3) / 2)
    assert of.chance == pytest.approx(of.deviation / 2)
    assert of.bias == pytest.approx(np.sqrt(2 - of.chance**2))
    assert of.cosine == pytest.approx(0, abs=1e-12)
    assert of.error == pytest.approx(np.hypot(of.bias, of.deviation))


@pytest.mark.parametrize("advantages", estimators.ADVANTAGES)
def test_only_dice_estimates_the_hessian_without_bias(advantages):
    sizes = {"horizon": 3, "episodes": [25, 400], "tasks": 3, "repeats": 60}
    rows = estimators.measure(**sizes, step_size=1.0, advantages=advantages, seed=1)
    few, many = (
        {row.loss: row for row in rows if row.episodes == number} for number in sizes["episodes"]
    )
    for row in (few["reinforce"], many["reinforce"]):  # more episodes do not help
        assert row.hessian.bias > 0.3 > 2 * row.hessian.chance
    assert many["dice"].hessian.bias < 3 * many["dice"].hessian.chance < 0.15
    assert 3 * many["lvc"].hessian.chance < many["lvc"].hessian.bias
    assert many["lvc"].hessian.bias < many["reinforce"].hessian.bias / 2
    for row in (few, many):
        assert row["lvc"].hessian.deviation < 0.9 * row["dice"].hessian.deviation
    assert many["dice"].hessian.deviation < few["dice"].hessian.deviation / 3
    assert many["none"].hessian.bias == pytest.approx(1, rel=1e-12)
    # the meta-gradient has no second derivatives in it, or those of the Hessian
    errors = [many[loss].meta_gradient.bias for loss in ("none", "reinforce", "dice")]
    assert errors == sorted(errors, reverse=True)


def test_the_table_of_the_estimators(tmp_path):
    words = ["--horizon", "2", "--episodes", "5", "--tasks", "2", "--repeats", "4"]
    picture = tmp_path / "found.svg"
    drawn = ("--picture", str(picture)) if importlib.util.find_spec("matplotlib") else ()
    found = started("estimators", *words, *drawn).stdout
    rows = [[each.strip() for each in line.split("|")] for line in found.splitlines()]
    assert [row[2] for row in rows if row[1:2] == ["5"]] == list(estimators.LOSSES)
    assert not drawn or "<svg" in picture.read_text()
    (tmp_path / "matplotlib.py").write_text("raise ImportError('none here')")
    command = [sys.executable, "-m", "benchmarks.estimators", *words, "--picture", "found.svg"]
    result = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=str(tmp_path)),
        cwd=ROOT,
    )
    assert (result.returncode, "--picture needs matplotlib" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("scale", "--picture", "nowhere/a.svg"), "nowhere/a.svg cannot be written"),
        (("rollout", "--picture", "a.svg"), "--picture is of scale: name that, too."),
    ],
)
def test_a_picture_that_cannot_be_is_said_before_anything_is_measured(words, said):
    result = run(None, "bench", *words, code=2)
    assert said in result.stderr


PROGRAMS = [
    path.stem
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
    if "ArgumentParser" in path.read_text()
]


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_explain_themselves(name):
    assert f"python -m benchmarks.{name}" in (ROOT / "benchmarks" / f"{name}.py").read_text()
    assert "usage" in started(name, "--help").stdout
