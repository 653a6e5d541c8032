"""TensorBoard and Weights & Biases: the numbers of metrics.h5, and never at the cost of the run."""

import contextlib
import json
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import FAULT, HERE, SMALL, run, start

from hpc_maml import open_run
from hpc_maml.algorithms.algorithm import Metric
from hpc_maml.algorithms.maml_trpo import MamlTrpo
from hpc_maml.config import MetricsConfig, load_config
from hpc_maml.errors import InputError
from hpc_maml.run import sinks
from hpc_maml.run.sinks import Entry, Sink, Sinks, check_sinks, shown, tags
from hpc_maml.storage.metrics import METRICS, Metrics

BOTH = ("metrics.tensorboard=on", "metrics.wandb=offline")


@pytest.fixture(scope="module")
def killed_and_resumed(tmp_path_factory) -> Path:
    """Return the folder of 8 iterations: the first job was killed after 5, of which it kept 3."""
    folder = tmp_path_factory.mktemp("sinks") / "run"
    tests = ("evaluation.every=2", "evaluation.tasks=3", "evaluation.updates=1")
    words = (
        *SMALL,
        *BOTH,
        *tests,
        "num_iterations=8",
        "checkpoint.every=3",
        "checkpoint.keep_best=false",
        "--run-dir",
        str(folder),
    )
    killed = ("0", "hpc_maml.run.record", "RunRecord.record", "6", "kill")
    with contextlib.chdir(folder.parent):  # where the job notes when it was killed
        job = start(2, *killed, *words, python=(FAULT,))
        job.communicate(timeout=60)
    assert job.returncode
    assert len(list((folder / "tensorboard").iterdir())) == 1
    run(3, *words, timeout=60)
    return folder


def recorded(folder: Path) -> dict[str, np.ndarray]:
    """Return the datasets of metrics.h5 by tag, ``[iterations]`` or ``[iterations, tasks]``."""
    with h5py.File(folder / "metrics.h5") as file:
        what = shown(Metrics(folder, {}, MamlTrpo.metrics, "updates"))
        columns = tags(what.columns)
        assert set(columns) == set(file["iterations"])
        found = {tag: file[f"iterations/{name}"][...] for name, tag in columns.items()}
        named = tags(what.distributions)
        assert set(named) == {"pre_update_return", "post_update_return"}
        return found | {tag: file[f"tasks/{name}"][...] for name, tag in named.items()}


def means_of_tests(folder: Path) -> dict[str, dict[int, float]]:
    """Return the means of the scheduled meta-tests by tag and iteration."""
    found: dict[str, dict[int, float]] = {}
    for test in open_run(folder).evaluations:
        for phase, mean in enumerate(test.returns["run"].mean(0)):
            tag = f"meta_test/return_after_{phase}_updates"
            found.setdefault(tag, {})[test.iteration] = mean
    return found


def test_metrics_stand_in_groups(killed_and_resumed):
    groups = {tag.partition("/")[0] for tag in recorded(killed_and_resumed)}
    assert groups == {"return", "outer_step", "time", "run"}
    named = tags({"sampling_seconds": METRICS["sampling_seconds"], "kl_after": Metric("nat", "")})
    assert named == {
        "sampling_seconds": "time/sampling_seconds",
        "kl_after": "outer_step/kl_after",
    }


def test_hyper_parameters_are_those_that_affect_the_result(killed_and_resumed):
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    events = EventAccumulator(str(killed_and_resumed / "tensorboard")).Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    given = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert given["algorithm.max_kl"].number_value == 0.03
    assert given["env.name"].string_value == "navigation"
    assert given["policy.hidden_sizes"].string_value == "[8, 8]"
    assert "topology.agents" not in given


def test_tensorboard_reads_each_row_once(killed_and_resumed):
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    folder = killed_and_resumed / "tensorboard"
    assert len(list(folder.iterdir())) == 2
    keep_all = {"scalars": 0, "histograms": 0}
    events = EventAccumulator(str(folder), tensor_size_guidance=keep_all).Reload()
    expected, tests = recorded(killed_and_resumed), means_of_tests(killed_and_resumed)
    assert list(tests["meta_test/return_after_1_updates"]) == [0, 2, 4, 6, 8]
    others = {"_hparams_/session_start_info"}
    assert set(events.Tags()["tensors"]) == {*expected, *tests, *others}
    for tag, means in tests.items():
        found = events.Tensors(tag)
        assert [event.step for event in found] == list(means)
        values = [make_ndarray(event.tensor_proto) for event in found]
        np.testing.assert_allclose(values, list(means.values()), rtol=1e-6)
    for path, values in expected.items():
        found = events.Tensors(path)
        assert [event.step for event in found] == list(range(1, 9)), path
        arrays = [make_ndarray(event.tensor_proto) for event in found]
        if values.ndim == 1:
            assert np.array_equal(arrays, values.astype(np.float32)), path
        for array, row in zip(arrays, values, strict=True):
            if values.ndim == 2:  # buckets: left edge, right edge, count
                assert np.allclose((array[0, 0], array[-1, 1]), (row.min(), row.max()))
                assert array[:, 2].sum() == len(row)
    times = [event.wall_time for event in events.Tensors("run/accepted")]
    assert times == sorted(times)
    unit = events.SummaryMetadata("outer_step/kl_after").summary_description
    assert unit == "mean KL after adaptation, old to new meta-policy [nat]"


def test_the_reader_that_scripts_use_reads_each_row_once_too(killed_and_resumed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(killed_and_resumed / "tensorboard"), {"scalars": 0}).Reload()
    for path, values in recorded(killed_and_resumed).items():
        if values.ndim == 1:
            assert [each.step for each in events.Scalars(path)] == list(range(1, 9))
            assert np.array_equal(
                [each.value for each in events.Scalars(path)], values.astype(np.float32)
            )


def wandb_history(file: Path) -> list[dict[str, Any]]:
    """Return the logged rows of an offline W&B file.

    It is a LevelDB log after 7 bytes: blocks of 32 KiB, and in these fragments of records, each
    with a checksum (4 bytes), its length (2) and its kind (1: whole, 2: first, 3: middle, 4: last).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, record, rows = file.read_bytes(), 7, b"", []
    while position + 7 <= len(content):
        if position % 2**15 > 2**15 - 7:  # no room for a header: the block is padded
            position += -position % 2**15
            continue
        length, kind = struct.unpack_from("<HB", content, position + 4)
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            items = Record.FromString(record).history.item
            row = {
                each.key or ".".join(each.nested_key): json.loads(each.value_json) for each in items
            }
            rows += [row] if row else []
            record = b""
    return rows


def test_wandb_offline_holds_the_whole_run_under_one_id(killed_and_resumed):
    folders = sorted((killed_and_resumed / "wandb").glob("offline-run-*"))
    # named after the second and the id: two starts within a second share one
    assert len({folder.name.rsplit("-", 1)[1] for folder in folders}) == 1
    (file,) = folders[-1].glob("*.wandb")
    first, *rows = wandb_history(file)
    assert [row["_step"] for row in (first, *rows)] == list(range(9))
    for tag, means in means_of_tests(killed_and_resumed).items():
        assert {row["_step"]: row[tag] for row in (first, *rows) if tag in row} == means
    for path, values in recorded(killed_and_resumed).items():
        for row, value in zip(rows, values, strict=True):
            if value.ndim:
                assert sum(row[f"{path}.values"]) == len(value)
                assert np.isclose(row[f"{path}.bins"][0], value.min())
            else:
                assert row[path] == value, path


def test_a_failing_sink_is_reported_once_and_the_run_goes_on():
    run(HERE, *SMALL, "num_iterations=1", "--run-dir", "run")
    Path("run/tensorboard").write_text("not a folder")
    result = run(HERE, *SMALL, "metrics.tensorboard=on", "--run-dir", "run")
    assert result.stdout.count("TensorBoard gets no more metrics: FileExistsError:") == 1
    assert "done: 5 iterations" in result.stdout
    assert not result.stderr


def test_a_rank_that_fails_ends_the_job_in_spite_of_its_sinks():
    words = ("0", "hpc_maml.run.record", "RunRecord.record", "3", "raise", *SMALL, *BOTH)
    job = start(2, *words, "num_iterations=50", "--run-dir", "run", python=(FAULT,))
    _, err = job.communicate(timeout=60)
    ended = time.time()
    assert "RuntimeError: planted fault" in err
    assert job.returncode
    assert ended - float(Path("fault_at").read_text()) < 10


def test_a_run_does_not_wait_for_a_sink_that_hangs(monkeypatch):
    release = threading.Event()
    written = []

    def hang(entries: Iterator[Entry]) -> None:
        written.append(next(entries))
        release.wait()
        written.extend(entries)

    monkeypatch.setattr(sinks, "LONGEST_QUEUE", 5)
    monkeypatch.setattr(sinks, "CLOSE_LIMIT", 0.2)
    monkeypatch.setattr(sinks, "write_wandb", lambda *words: hang(words[-1]))
    said: list[str] = []
    config = load_config(None, ["metrics.tensorboard=off", "metrics.wandb=offline"])
    several = Sinks(
        config, Path("run"), Metrics(Path("metrics.h5"), {}, {}, "updates"), [], said.append
    )
    began = time.monotonic()
    several.put({"a": 1})
    while not written:
        time.sleep(0.001)
    for _ in range(5):
        several.put({"a": 1})
    assert not said
    for _ in range(3):
        several.put({"a": 1})
    several.close()
    assert time.monotonic() - began < 5
    assert said == [
        "Weights & Biases gets no more metrics: it is 5 iterations behind. The run goes on; "
        "metrics.h5 holds everything."
    ]
    release.set()


def test_the_end_waits_a_limited_time():
    release = threading.Event()
    sink = Sink("slow", lambda entries: release.wait() and None, [])
    began = time.monotonic()
    sink.close(0.2)
    assert 0.2 <= time.monotonic() - began < 5
    assert sink.failure == "it has not ended after 0 s"
    release.set()


def test_every_row_is_written_before_the_end():
    written: list[Entry] = []
    sink = Sink(
        "slow", lambda entries: [time.sleep(0.01) or written.append(e) for e in entries], []
    )
    entries = [Entry(number, 0.0, {}) for number in range(1, 31)]
    for entry in entries:
        sink.put(entry)
    sink.close(30)
    assert written == entries
    assert not sink.failure


def test_what_is_asked_for_must_be_installed(monkeypatch):
    monkeypatch.setattr(sinks, "_is_installed", lambda name: False)
    check_sinks(MetricsConfig())
    for key, setting in (("tensorboard", "on"), ("wandb", "offline")):
        with pytest.raises(InputError, match=rf"pip install 'hpc_maml\[{key}\]'"):
            check_sinks(MetricsConfig(**{key: setting}))


def test_a_folder_is_no_installation(tmp_path, monkeypatch):
    (tmp_path / "kept_metrics").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not sinks._is_installed("kept_metrics")
    assert not sinks._is_installed("nowhere_at_all")
    assert sinks._is_installed("numpy")
