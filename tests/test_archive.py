"""The archive: the same on any ranks, whole after any kill, and what its reader promises."""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from functools import cache
from hashlib import sha256
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import BAD_INPUT, HERE, ROOT, SMALL, environment, ranks_of, run, start, train_each

from hpc_maml import open_run, train
from hpc_maml.algorithms.adaptation import adapt
from hpc_maml.config import ArchiveConfig, load_config
from hpc_maml.errors import InputError
from hpc_maml.parts import make_env
from hpc_maml.policies import make_policy
from hpc_maml.policies.mlp import MLPSettings
from hpc_maml.run.job import archive_shapes, prepare
from hpc_maml.run.record import RunRecord
from hpc_maml.sampling.trajectory import Trajectories, batch_dtype, samples
from hpc_maml.storage.archive_plan import Shapes, estimate, is_archived
from hpc_maml.storage.archive_schema import FIELDS, OPTIONAL_FIELDS
from hpc_maml.storage.archive_writer import RolloutArchive, SegmentWriter
from hpc_maml.storage.hdf5_files import USER_BLOCK, user_block
from hpc_maml.storage.metrics import PER_TASK

slow = pytest.mark.slow
SETTINGS = (*SMALL, "num_iterations=3", "archive.rollouts=every", "checkpoint.keep=9")
DAMAGED = 1


def content(folder: Path) -> list[tuple[int, int, str, bytes]]:
    """Return all of an archive in the order in which the reader presents it."""
    with warnings.catch_warnings(action="error"):
        return [
            (iteration, task, name, getattr(rollout, name).tobytes())
            for (iteration, task), rollout in open_run(folder).rollouts.items()
            for name in ("task", *FIELDS)
        ]


@cache
def serial(folder: Path) -> list[tuple[int, int, str, bytes]]:
    run(HERE, *SETTINGS, "--run-dir", str(folder))
    return content(folder)


@pytest.fixture(scope="session")
def serial_run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("archive") / "run"
    serial(folder)
    return folder


def test_the_same_data_on_any_ranks(serial_run):
    runs = {
        Path(f"{ranks}-{layout}"): (
            ranks,
            (*SETTINGS, f"topology.layout={layout}", f"topology.agents={agents}"),
        )
        for ranks, layout, agents in ((3, "split", 1), (8, "split", 3), (7, "team", 3))
    }
    train_each(8, runs)
    for folder in runs:
        assert content(folder) == serial(serial_run)
        assert len(content(folder)) == 3 * 6 * (1 + len(FIELDS))


def test_rollouts_are_those_the_metrics_and_the_policies_tell_of():
    words = ("archive.adapted_parameters=true", "algorithm.num_inner_steps=2", "env.name=ant_goal")
    run(HERE, *SETTINGS, *words, "horizon=30", "--run-dir", "run")
    archive = open_run("run")
    policy = make_policy(MLPSettings(hidden_sizes=[8, 8]), 29, 8, discrete=False)
    assert list(archive.rollouts) == [(k, task) for k in (1, 2, 3) for task in range(6)]
    returns = archive.per_task["return_after_updates"]
    lengths = []
    for (iteration, index), rollout in archive.rollouts.items():
        # [K, T, B] -> [K]
        found = rollout.rewards.sum(1, np.float64).mean(1)
        np.testing.assert_allclose(found, returns[iteration - 1, index], rtol=1e-6)
        assert np.array_equal(rollout.task, archive.tasks[iteration - 1, index])
        ends = (rollout.terminated | rollout.truncated).argmax(1) + 1
        assert np.array_equal(ends, rollout.lengths)
        lengths += rollout.lengths.ravel().tolist()
        if iteration == 1:
            continue
        values = archive.checkpoint(iteration - 1).parameters.values()
        meta = np.concatenate([value.ravel() for value in values])
        for phase, theta in enumerate((meta, *rollout.adapted_parameters)):
            fields = {name: getattr(rollout, name)[phase] for name in FIELDS}
            own = samples(Trajectories(*map(fields.get, Trajectories._fields[:-1]), index))
            distribution = policy.forward(policy.unflatten(theta), own.observations)
            log_probs = policy.distribution.log_prob(distribution, own.actions)
            valid = own.weights > 0
            assert valid.sum() == rollout.lengths[phase].sum()
            np.testing.assert_allclose(log_probs[valid], own.log_probs[valid], atol=1e-4)
            assert not own.observations[~valid].any()
            if phase < 2:
                np.testing.assert_allclose(
                    adapt(policy, theta, own, 0.1), rollout.adapted_parameters[phase], atol=1e-6
                )
    assert len(set(lengths)) > 3  # ragged


def test_any_tool_opens_every_file(serial_run):
    files = sorted((serial_run / "rollouts").rglob("*.h5"))
    assert len(files) == 1 + 3 + 3  # index, iterations, one rank's segments
    for path in files:
        with h5py.File(path) as file:
            assert file.attrs["format_version"] == 1
    rollouts = open_run(serial_run).rollouts
    with h5py.File(serial_run / "rollouts" / "index.h5") as index:
        assert list(index) == [f"iteration_{k:06d}" for k in (1, 2, 3)]
        for (iteration, task), rollout in rollouts.items():
            group = index[f"iteration_{iteration:06d}"]
            for name in ("task", *FIELDS):
                assert np.array_equal(group[name][task], getattr(rollout, name))
                assert group[name].attrs["unit"]


def test_every_nth_iteration():
    every, none, third = (ArchiveConfig(rollouts=value) for value in ("every", "none", 3))
    assert all(is_archived(every, k) for k in range(1, 9))
    assert not any(is_archived(none, k) for k in range(1, 9))
    assert [k for k in range(1, 9) if is_archived(third, k)] == [1, 4, 7]


@pytest.mark.parametrize("compression", ["lzf", "gzip"])
def test_compression_changes_the_size_only(compression, serial_run):
    words = (f"archive.compression={compression}", "archive.rollouts=2", "--run-dir", "run")
    run(HERE, *SETTINGS, *words)
    expected = [row for row in serial(serial_run) if row[0] != 2]
    assert content(Path("run")) == expected
    segment = "rollouts/iteration_000001"
    sizes = [
        sum(part.stat().st_size for part in (folder / segment).iterdir())
        for folder in (Path("run"), serial_run)
    ]
    assert sizes[0] < sizes[1]


def test_without_an_archive_there_is_no_folder():
    run(HERE, *SETTINGS, "archive.rollouts=none", "--run-dir", "run")
    assert not Path("run/rollouts").exists()
    assert list(open_run("run").rollouts) == []


def test_the_documentation_names_everything():
    text = (ROOT / "docs" / "archive.md").read_text()
    for name in (*FIELDS, *OPTIONAL_FIELDS):  # metrics have a page of their own
        assert f"`{name}`" in text, name
    for name in PER_TASK:
        assert f"`tasks/{name}`" in text, name
    for name in ArchiveConfig.model_fields:
        assert f"`archive.{name}`" in text, name


# Limits


def test_the_estimate_is_shown_and_is_the_size(serial_run):
    config = load_config(None, SETTINGS)
    shapes = archive_shapes(prepare(config, make_env(config, episodes=1)))
    each, total = estimate(config, shapes)
    # [6 tasks, 2 phases] of 12 x 3 steps of 7 floats and 2 flags, 3 lengths, a count
    assert each == 6 * 2 * (12 * 3 * (7 * 4 + 2) + 3 * 8 + 8)
    assert total == 3 * each
    found = sum(part.stat().st_size for part in serial_run.glob("rollouts/*/*.h5"))
    assert total < found < total + 3 * 40_000  # what HDF5 itself needs
    result = run(HERE, *SETTINGS, "num_iterations=4", "--run-dir", "run")
    assert "rollouts: 13.3 kB an archived iteration, 53.4 kB for 4 iterations" in result.stdout


def test_a_limit_refuses_or_drops_the_oldest(serial_run):
    words = (*SETTINGS, "archive.max_bytes=30000", "--run-dir", "run")
    result = run(HERE, *words, code=BAD_INPUT)
    assert "take 40032 bytes, more than archive.max_bytes = 30000: archive fewer" in result.stderr
    assert not Path("run").exists()
    one = next(iter(serial_run.glob("rollouts/*/*.h5"))).stat().st_size
    words = (*SETTINGS, f"archive.max_bytes={5 * one // 2}", "archive.when_full=thin")
    run(HERE, *words, "--run-dir", "run")
    assert open_run("run").rollouts.iterations == [2, 3]
    assert content(Path("run")) == [row for row in serial(serial_run) if row[0] != 1]
    assert len(list(Path("run/rollouts").iterdir())) == 5
    result = run(HERE, *words, "archive.max_bytes=9", "--run-dir", "x", code=BAD_INPUT)
    assert "The rollouts of one iteration take" in result.stderr


def test_what_was_refused_at_the_start_is_never_removed():
    words = (*SETTINGS, "archive.rollouts=every", "--run-dir", "run", "num_iterations=3")
    run(HERE, *words, "archive.max_bytes=40032")  # of three without what HDF5 adds
    assert open_run("run").rollouts.iterations == [1, 2, 3]
    assert sum(part.stat().st_size for part in Path("run").glob("rollouts/*/*.h5")) > 40032
    words = (*words[:-1], "num_iterations=5", "archive.max_bytes=60000")
    said = run(HERE, *words, code=BAD_INPUT).stderr
    assert "The rollouts of 5 iterations take 66720 bytes, more than archive.max_bytes" in said
    run(HERE, *words, "archive.rollouts=4")  # of 4 and 5 only the latter
    assert open_run("run").rollouts.iterations == [1, 2, 3, 5]
    run(HERE, *words[:-2], "num_iterations=6", "archive.rollouts=none", "archive.max_bytes=9")
    assert open_run("run").rollouts.iterations == [1, 2, 3, 5]


# What goes wrong


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=slow)])
def test_kills_of_any_rank_at_random_moments(kills, tmp_path):
    folder = tmp_path / "run"
    settings = [*SETTINGS, "--run-dir", str(folder), "checkpoint.every=2", "checkpoint.keep=2"]
    chance = random.Random(1)
    held = 0
    for _ in range(kills):
        job = start(chance.choice([None, 2, 3, 4]), *settings, "num_iterations=9999")
        # Some are killed while they start, and most some iterations later.
        seen = open_run(folder).rollouts.iterations if (folder / "config.yaml").exists() else []
        more = chance.choice([0, 1, 1, 2])
        goal = max(seen, default=0) + more
        deadline = time.monotonic() + 60
        while max(seen, default=0) < goal:
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
            if (folder / "config.yaml").exists():
                seen = open_run(folder).rollouts.iterations
        time.sleep(chance.uniform(0, 0.15))
        # a job that starts may remove what came after the checkpoint
        before = open_run(folder).rollouts.iterations if more else seen[:held]
        while not (ranks := ranks_of(folder)):
            assert job.poll() is None, job.communicate()
        os.kill(chance.choice(sorted(ranks.values())), signal.SIGKILL)
        job.communicate(timeout=30)
        assert job.returncode
        if not (folder / "config.yaml").exists():
            continue
        left = open_run(folder)
        assert left.rollouts.iterations[: len(before)] == before
        assert left.rollouts.damages(verify=True) == []
        assert left.rollouts.iterations == list(range(1, len(left.rollouts.iterations) + 1))
        held = max(left.checkpoints, default=0)
        assert held <= len(left.rollouts.iterations)
    iterations = f"num_iterations={len(left.rollouts.iterations) + 2}"
    run(3, *settings, iterations)
    run(HERE, *SETTINGS, iterations, "--run-dir", "undisturbed")
    assert content(folder) == content(Path("undisturbed"))
    assert not list(folder.rglob("*.partial"))


def test_torn_segments_are_skipped_with_a_sentence(serial_run):
    shutil.copytree(serial_run, "run")
    assert run(HERE, "inspect", "run", "--verify").stderr == ""
    segments = [Path(f"run/rollouts/iteration_{k:06d}/rank_0000.h5") for k in (1, 2, 3)]
    content = segments[1].read_bytes()
    segments[1].write_bytes(content[: len(content) // 2])
    rollouts = open_run("run").rollouts
    with pytest.warns(
        UserWarning, match=r"iteration_000002/rank_0000.h5 is damaged: it has .* It is"
    ):
        assert list(rollouts) == [(k, task) for k in (1, 3) for task in range(6)]
    with pytest.raises(InputError, match=r"iteration_000002/rank_0000\.h5 is damaged"):
        rollouts[2, 0]
    assert (2, 0) not in rollouts
    assert (1, 0) in rollouts
    with pytest.raises(KeyError, match="iteration 4 is not archived"):
        rollouts[4, 0]
    result = run(HERE, "inspect", "run", code=DAMAGED)
    assert result.stderr.count("is damaged: it has") == 1
    assert "rollouts    of 3 iterations, 1 to 3" in result.stdout
    segments[1].unlink()
    assert "No such file" in run(HERE, "inspect", "run", code=DAMAGED).stderr
    segments[1].write_bytes(content)

    # A flipped bit is seen where it is read.
    with h5py.File(segments[2]) as file:
        place = file["rewards"].id.get_chunk_info(0).byte_offset
    flipped = bytearray(segments[2].read_bytes())
    flipped[place] ^= 1
    segments[2].write_bytes(flipped)
    assert run(HERE, "inspect", "run").stderr == ""
    assert "rank_0000.h5 is damaged" in run(HERE, "inspect", "run", "--verify", code=DAMAGED).stderr
    with pytest.raises(InputError, match=r"rank_0000\.h5 is damaged"):
        _ = rollouts[3, 0].rewards
    Path("run/rollouts/iteration_000001.h5").write_bytes(b"torn")
    Path("run/metrics.h5").write_bytes(b"torn")
    stderr = run(HERE, "inspect", "run", code=DAMAGED).stderr
    assert "iteration_000001.h5 is damaged" in stderr
    assert "metrics.h5 is damaged" in stderr


def test_a_full_disk_ends_the_run_with_a_sentence_and_a_checkpoint(tmp_path):
    """A limit on the size of files stands for the disk, as not everybody may mount one."""
    folder = tmp_path / "run"
    settings = (*SETTINGS, "fast_batch_size=40", "horizon=40", "--run-dir", str(folder))
    job = start(3, *settings, "num_iterations=99", "checkpoint.every=50")
    while not (folder / "rollouts/iteration_000002.h5").exists():
        assert job.poll() is None, job.communicate()
        time.sleep(0.001)
    for rank in ranks_of(folder).values():  # segments have 580 kB, checkpoints and metrics less
        resource.prlimit(rank, resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    _, err = job.communicate(timeout=60)
    assert job.returncode == BAD_INPUT, err
    last = open_run(folder).committed_iterations
    assert re.search(
        r"rank_000[012]\.h5 cannot be written: File too large; the run ends with the checkpoint "
        rf"iteration_{last:06d}\.h5\.",
        err,
    )
    assert "Traceback" not in err
    assert open_run(folder).checkpoints == [last]
    assert open_run(folder).rollouts.iterations == list(range(1, last + 1))
    assert open_run(folder).rollouts.damages(verify=True) == []
    assert not list(folder.rglob("*.partial"))
    run(2, *settings, f"num_iterations={last + 1}")
    run(HERE, *settings[:-1], "undisturbed", f"num_iterations={last + 1}")
    assert content(folder) == content(Path("undisturbed"))


@pytest.mark.parametrize("ranks", [4, pytest.param(None, marks=slow)])
def test_a_folder_that_cannot_be_written_ends_the_run_likewise(ranks):
    words = (*SETTINGS, "num_iterations=5", "checkpoint.every=9", "--run-dir", "run")
    run(HERE, *words, "num_iterations=1")
    # Root may write into any folder, but not into a file.
    Path("run/rollouts/iteration_000003").write_text("in the way")
    err = run(ranks, *words, code=BAD_INPUT).stderr
    assert "rollouts/iteration_000003 cannot be made: File exists; the run ends with the " in err
    assert "checkpoint iteration_000002.h5." in err
    assert "Traceback" not in err
    assert open_run("run").checkpoints == [1, 2]
    assert open_run("run").rollouts.iterations == [1, 2]


@pytest.mark.parametrize("has_room", [False, True])
def test_a_disk_that_is_full_from_the_start_leaves_a_run_or_nothing(has_room, monkeypatch):
    """It left a folder that was no run, and that no run could begin in."""
    config = load_config(None, SETTINGS)

    def full(self):
        raise InputError("no room")

    with monkeypatch.context() as patch:
        patch.setattr(SegmentWriter, "write", full)
        if not has_room:
            patch.setattr(RunRecord, "write_checkpoint", full)
        end = "with the checkpoint iteration_000000.h5" if has_room else "without a checkpoint"
        with pytest.raises(InputError, match=f"no room; the run ends {end}."):
            train(config, "run")
    assert Path("run").exists() == has_room
    assert train(config, "run").rollouts.iterations == [1, 2, 3]


# The reader


def in_a_process(code: str, *words: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
        timeout=300,  # what waits for a pipe has no end
    )
    return result.stdout


def test_the_reader_needs_neither_mpi_nor_torch_nor_an_environment(serial_run):
    code = (
        "import json, sys; from hpc_maml import open_run; run = open_run(sys.argv[1]);"
        "run.metrics; run.config; run.tasks; run.versions; run.rollouts[1, 0].rewards;"
        "run.checkpoint(2); print(json.dumps(sorted(sys.modules)))"
    )
    modules = {name.partition(".")[0] for name in json.loads(in_a_process(code, str(serial_run)))}
    assert "h5py" in modules
    assert not modules & {"mpi4py", "torch", "mujoco", "gymnasium", "rich"}


def test_what_the_reader_offers(serial_run):
    archive = open_run(serial_run)
    assert archive.config["meta_batch_size"] == 6
    assert archive.config["policy"]["hidden_sizes"] == [8, 8]
    assert archive.committed_iterations == 3
    assert archive.metrics.index.tolist() == [1, 2, 3]
    assert archive.metrics.index.name == "iteration"
    returns = archive.per_task["return_after_updates"]
    assert returns.shape == (3, 6, 2)
    np.testing.assert_array_equal(returns.mean(1)[:, 1], archive.metrics["post_update_return_mean"])
    np.testing.assert_array_equal(returns[:, :, 0], archive.per_task["pre_update_return"])
    assert archive.tasks.shape == (3, 6, 2)
    assert archive.units["kl_after"] == "nat"
    assert archive.versions["hosts"]
    assert archive.checkpoints == [1, 2, 3]
    assert archive.checkpoint(3).parameters["weight_0"].shape == (2, 8)
    with pytest.raises(InputError, match="no checkpoint of iteration 4; there is 1, 2, 3"):
        archive.checkpoint(4)
    with pytest.raises(InputError, match="is not a run folder"):
        open_run(serial_run.parent)
    with pytest.raises(AttributeError, match="has no field 'reward'; it has observations"):
        _ = archive.rollouts[1, 0].reward
    with pytest.raises(AttributeError, match="adapted_parameters were not archived"):
        _ = archive.rollouts[1, 0].adapted_parameters


def test_archives_of_format_1_keep_opening():
    """The folder was written by the first program with an archive: never write it anew."""
    archive = open_run(ROOT / "tests" / "data" / "run_format_1")
    assert archive.rollouts.damages(verify=True) == []
    assert list(archive.rollouts) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert archive.config["policy"]["hidden_sizes"] == [2]
    returns = archive.per_task["return_after_updates"]  # [iterations, tasks, updates]
    np.testing.assert_allclose(
        returns[1], [[-0.94646454, -1.24343586], [-0.83969696, -0.91597069]], rtol=1e-7
    )
    np.testing.assert_allclose(archive.metrics["pre_update_return_mean"], returns[..., 0].mean(1))
    for (iteration, task), rollout in archive.rollouts.items():
        assert np.array_equal(rollout.task, archive.tasks[iteration - 1, task])
        assert rollout.observations.shape == rollout.actions.shape == (2, 3, 2, 2)
        assert rollout.lengths.tolist() == [[3, 3], [3, 3]]
        assert rollout.truncated[:, -1].all()
        assert rollout.adapted_parameters.shape == (1, 14)
        np.testing.assert_allclose(
            rollout.rewards.sum(1).mean(1), returns[iteration - 1, task], rtol=1e-6
        )
        # the reward of navigation: minus the distance to the goal, after the step
        distances = np.linalg.norm(rollout.observations[:, 1:] - rollout.task, axis=-1)
        np.testing.assert_allclose(rollout.rewards[:, :-1], -distances, rtol=1e-5)
    assert archive.checkpoint(2).parameters["weight_0"].shape == (2, 2)


def test_tables_that_are_elsewhere_are_not_followed(serial_run, tmp_path):
    folder = Path(shutil.copytree(serial_run, tmp_path / "run"))
    damaged = folder / "rollouts" / "iteration_000002.h5"
    os.mkfifo("pipe")
    with h5py.File(damaged, "r+") as file:
        del file["segments"]
        file["segments"] = h5py.ExternalLink(str(Path("pipe").absolute()), "/")
    content = damaged.read_bytes()[USER_BLOCK:]
    damaged.write_bytes(user_block(sha256(content)) + content)
    code = "import sys; from hpc_maml import open_run; print(*open_run(sys.argv[1])."
    said = in_a_process(f"{code}rollouts.damages())", str(folder))
    assert said == f"{damaged} is damaged: segments is a link to elsewhere.\n"


def test_a_damaged_number_does_not_ask_for_gigabytes(serial_run, tmp_path):
    """HDF5 makes room for the sources of a joined array before it looks at how many there are."""
    folder = Path(shutil.copytree(serial_run, tmp_path / "run"))
    damaged = folder / "rollouts" / "iteration_000002.h5"
    content = bytearray(damaged.read_bytes())
    one = (1).to_bytes(8, "little")  # source
    content[content.index(one + b"iteration_000002/rank_0000.h5\0") + 3] = 1  # and 2^24
    damaged.write_bytes(user_block(sha256(content[USER_BLOCK:])) + content[USER_BLOCK:])
    code = """
import resource, sys
from hpc_maml import open_run

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
for damage in open_run(sys.argv[1]).rollouts.damages():
    print(damage)
assert peak() - before < 2**19, (peak() - before) // 1024  # kB
assert resource.getrlimit(resource.RLIMIT_AS) == (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
"""
    assert in_a_process(code, str(folder)).startswith(f"{damaged} is damaged: ")


def test_pandas_is_asked_for_in_one_sentence(serial_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"pip install 'hpc_maml\[report\]'"):
        _ = open_run(serial_run).metrics


def test_a_run_can_be_read_while_it_is_written():
    job = start(3, *SETTINGS, "num_iterations=40", "--run-dir", "run", "checkpoint.keep=1")
    seen = set()
    while job.poll() is None:
        if Path("run/config.yaml").exists():
            archive = open_run("run")
            done = archive.committed_iterations
            assert len(archive.metrics) >= done
            assert len(archive.tasks) >= done
            iterations = archive.rollouts.iterations
            assert iterations == list(range(1, len(iterations) + 1))
            assert len(iterations) >= done
            if iterations:
                assert archive.rollouts[iterations[-1], 5].rewards.any()
            seen.add(done)
    assert job.returncode == 0, job.communicate()
    job.communicate()
    assert len(seen) > 3


def test_reading_task_by_task_takes_little_memory(tmp_path):
    config = load_config(None, ["meta_batch_size=10"])
    batch = np.ones(1, batch_dtype(100, 40, (60,), (8,), np.float32))
    shapes = Shapes(batch.dtype, 2, 0, adapted=False)
    archive = RolloutArchive(tmp_path / "rollouts", config, shapes, 0)
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "rollouts").mkdir(exist_ok=True)
    writer = SegmentWriter(tmp_path / "rollouts", ArchiveConfig(rollouts="every"), shapes, 0)
    for iteration in range(1, 16):
        for task in range(10):
            batch["task"] = task
            for _ in range(2):
                writer.keep(iteration, batch, np.zeros(0))
        archive.commit(iteration, np.zeros((10, 1)), [writer.write()])
    total = sum(path.stat().st_size for path in tmp_path.rglob("*.h5"))
    assert total > 300e6
    code = (
        "import sys; from pathlib import Path; from hpc_maml import open_run\n"
        "count = 0\n"
        "for rollout in open_run(sys.argv[1]).rollouts.values():\n"
        "    count += rollout.observations.sum() + rollout.actions.sum()\n"
        "assert count > 1e7\n"
        "print(next(line for line in Path('/proc/self/status').read_text().splitlines()"
        " if line.startswith('VmHWM')).split()[1])"
    )
    assert int(in_a_process(code, str(tmp_path))) < 200_000  # kB
