"""The warning of a run that unlearns: never by noise, always by a fall, and not again and again."""

import pickle
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from conftest import ROOT

from hpc_maml.algorithms.algorithm import gradient_metrics
from hpc_maml.report.experiments import by_environment, read_runs
from hpc_maml.report.page import page
from hpc_maml.report.unlearning import USED, WINDOW, Fall, Watch, falls, unlearning
from hpc_maml.run.training import _Record
from hpc_maml.stopping import StopSignal

NUMBERS = np.arange(200)
RISING = 10 * (1 - np.exp(-NUMBERS / 30))  # in units of the noise
FALLING = np.where(NUMBERS < 100, RISING, RISING[99] - 0.08 * (NUMBERS - 99))


def curves(shape, number, seed=0):
    """Return noisy curves [number, iterations]."""
    return shape + np.random.default_rng(seed).standard_normal((number, len(shape)))


@pytest.mark.parametrize("shape", [0 * NUMBERS, NUMBERS / 40, RISING, 10 * RISING])
def test_noise_is_no_fall(shape):
    assert not any(falls(curve) for curve in curves(shape, 1000))


def test_a_fall_is_found():
    found = [falls(curve) for curve in curves(FALLING, 200)]
    first = [each[0].iteration for each in found]
    assert min(first) > 100
    assert np.median(first) < 150
    assert max(first) < 180


def test_a_fall_by_hand():
    """Windows of 20 that alternate around their mean by 1: a spread of sqrt(20 / 19)."""
    noise = np.tile([1.0, -1.0], 30)
    returns = np.repeat([5.0, 9.0, 6.0], WINDOW) + noise
    found = falls(returns)
    # 2.5 spreads are 2.565: less than a fall by 3, more than one by 2
    assert found == [Fall(60, 6.0, 40, 9.0, pytest.approx(np.sqrt(20 / 19)))]
    assert falls(np.repeat([5.0, 9.0, 7.0], WINDOW) + noise) == []  # a fall by 2


def test_small_changes_without_noise_are_no_fall():
    returns = np.concatenate([np.linspace(0, 100, 50), np.full(30, 100.0), np.full(30, 95.0)])
    assert falls(returns) == []
    assert falls(np.where(returns == 95, 85.0, returns))


def test_it_is_said_again_only_if_it_gets_worse():
    low = np.concatenate([RISING[:100], np.full(100, RISING[99] - 5)])
    assert [len(falls(curve)) for curve in curves(low, 50)].count(1) >= 45
    found = falls(curves(FALLING, 1)[0])
    assert len(found) >= 2
    for before, after in pairwise(found):
        assert after.iteration >= before.iteration + WINDOW
        assert after.mean < before.mean - 2 * after.spread


def test_the_past_decides_alone():
    curve = curves(FALLING, 1)[0]
    found = falls(curve)
    for end in range(len(curve) + 1):
        assert falls(curve[:end]) == [each for each in found if each.iteration <= end]


def test_diverged_iterations_are_passed_over():
    curve = curves(FALLING, 1)[0]
    curve[[0, 30, 110]] = np.nan
    assert falls(curve)
    assert falls(np.full(100, np.nan)) == []


def table(returns, **columns):
    """Return metrics of these returns."""
    rows = len(returns)
    return {
        "post_update_return_mean": returns,
        "accepted": np.ones(rows, int),
        "gradient_snr": np.full(rows, 1.25),
    } | columns


def test_the_sentence():
    returns = np.repeat([5.0, 9.0, 1.0], WINDOW)
    said = unlearning(table(returns, accepted=np.arange(60) < 50))
    # (17 x 9 + 3 x 5) / 20 and (3 x 9 + 17 x 1) / 20
    assert said.startswith(
        "the return after adaptation fell from 8.40 (mean of 20 iterations up to 37) to 2.20 "
        "(up to 57), with a spread of 2.32, though 13 of 20 updates were accepted; look at "
    )
    assert said.endswith("which is near 1 where the gradient is noise (median 1.2)")
    assert unlearning({"pre_update_return_mean": returns}) == ""


@pytest.mark.parametrize("continued_at", [0, 10, 110, 150])
def test_it_is_said_once_wherever_a_run_is_continued(continued_at):
    """What a run says on its way is what a report finds of the rows up to there."""
    columns = table(curves(FALLING, 1)[0], accepted=(NUMBERS % 3 > 0).astype(int))
    kept, notes = [], []
    reporter = SimpleNamespace(iteration=lambda *_: None, note=notes.append)
    sinks = SimpleNamespace(put=lambda _: None)
    run = SimpleNamespace(
        metrics=SimpleNamespace(rows=kept),
        record=lambda done, state, row, _: kept.append(row),
        scheduled_test=lambda done: None,
    )
    watch = Watch({name: column[:continued_at] for name, column in columns.items()})
    training = SimpleNamespace(
        run=run,
        reporter=reporter,
        sinks=sinks,
        job_size={},
        watch=watch,
        stop=StopSignal(),
        callbacks=(),
    )
    for done in range(continued_at + 1, len(NUMBERS) + 1):
        row = {name: column[done - 1] for name, column in columns.items()}
        row |= {"iteration_seconds": 1.0}
        result = SimpleNamespace(done=done, state={}, row=row, reason="")
        record = _Record(training, None)
        record.write(result, [])
        record.iteration(result)
    found = [each.iteration for each in falls(columns["post_update_return_mean"])]
    assert len(found) > 1
    expected = [
        f"iteration {end}: {unlearning({name: column[:end] for name, column in columns.items()})}"
        for end in found
        if end > continued_at
    ]
    assert notes == expected


def test_what_is_watched_does_not_grow():
    watch = Watch(table(np.empty(0)))
    row = dict.fromkeys(USED, 1.0)

    def size() -> int:
        return len(pickle.dumps(watch))

    for _ in range(100):
        watch.sentence(row)
    before = size()
    for _ in range(1000):
        watch.sentence(row)
    assert size() < before + 100


def test_a_report_says_it(tmp_path):
    shutil.copytree(ROOT / "tests" / "data" / "run_format_1", tmp_path / "run")

    def written(returns) -> str:
        with h5py.File(tmp_path / "run" / "metrics.h5", "a") as file:
            file.attrs["committed_iterations"] = len(returns)
            for group in ("iterations", "tasks"):
                for name, dataset in list(file[group].items()):
                    values = np.resize(dataset[...], (len(returns), *dataset.shape[1:]))
                    if name == "post_update_return_mean":
                        values = returns
                    if name == "accepted":
                        values = np.ones(len(returns), int)
                    attributes = dict(dataset.attrs)
                    del file[group][name]
                    file[group][name] = values
                    file[group][name].attrs.update(attributes)
        environments = by_environment(read_runs([Path(tmp_path / "run")]))
        return page(environments, {each.name: [] for each in environments}, [])

    assert "the return after adaptation fell from 8.40" in written(np.repeat([5.0, 9.0, 1.0], 20))
    assert "the return after adaptation fell" not in written(np.repeat([5.0, 9.0, 9.0], 20))


def test_a_single_task_has_no_signal_to_noise():
    """What is left of its squares is rounding, of either sign."""
    for gradient in np.random.default_rng(1).standard_normal((20, 1000)).astype(np.float32):
        square = float((gradient * gradient).sum())
        assert np.isnan(gradient_metrics(gradient.astype(np.float64), square, 1)["gradient_snr"])
        assert gradient_metrics(gradient / 2, square, 2)["gradient_snr"] == pytest.approx(3**-0.5)
