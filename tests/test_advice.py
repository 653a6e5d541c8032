"""What is advised after a run, against times worked out by hand."""

import numpy as np
import pytest

from hpc_maml.report.advice import Split, Work, advise

# A job of 9 ranks on 9 cores: one agent, seven observers; 14 s of observing, 4 s of updating.
JOB = {
    "ranks": 9,
    "agents": 1,
    "observers": 7,
    "cores": 9,
    "gpus": 0,
    "principal_busy": 0.01,
    "agents_busy": 4 / 6.5,
    "observers_busy": 14 / 7 / 6.5,
    "iteration_seconds": 6.5,
    "sampling_seconds": 2.0,
    "update_seconds": 4.0,
}


def table(*rows):
    """Return the columns of iterations that differ from JOB in these values."""
    return {name: np.array([(JOB | row)[name] for row in rows or ({},)]) for name in JOB}


def test_the_seconds_of_a_split():
    work = Work(observing=14.0, linearising=0.0, updating=4.0, other=0.5)
    assert work.seconds(Split(1, 7, colocated=False), 9) == pytest.approx(14 / 7 + 4 + 0.5)
    assert work.seconds(Split(3, 5, colocated=False), 9) == pytest.approx(14 / 3 + 4 / 3 + 0.5)
    assert work.seconds(Split(9, 9, colocated=True), 9) == pytest.approx(18 / 9 + 0.5)
    assert work.seconds(Split(9, 9, colocated=True), 2) == pytest.approx(18 / 2 + 0.5)


def test_colocated_is_best_without_gpus():
    busy, advice = advise(table())
    assert busy == "busy: principal 1 %, agents 62 %, observers 31 % of the time"
    # 2.5 s instead of 6.5 s
    assert advice == "with topology.layout=colocated an iteration would take about 38 % of the time"


def test_more_agents_where_each_has_a_gpu():
    _, advice = advise(table({"gpus": 2}))
    # two agents with three observers each: 14 / 6 + 4 / 2 + 0.5 = 4.83 s
    words = "topology.layout=split topology.agents=2"
    assert advice == f"with {words} an iteration would take about 74 % of the time"


def test_nothing_to_say():
    colocated = {
        "agents": 9,
        "observers": 9,
        "agents_busy": 4 / 9 / 2.5,
        "observers_busy": 14 / 9 / 2.5,
        "iteration_seconds": 2.5,
        "sampling_seconds": 14 / 9,
        "update_seconds": 4 / 9,
    }
    assert advise(table(colocated))[1] == "no other split of 9 ranks would be much faster"


def test_one_rank_has_no_other_split():
    assert len(advise(table({"ranks": 1, "agents": 1, "observers": 1}))) == 1


def test_only_the_last_job_counts():
    earlier = {"ranks": 4, "observers": 2, "cores": 2, "update_seconds": 99.0}
    assert advise(table(earlier, earlier, {}, {})) == advise(table())


def test_a_run_that_has_not_begun_or_is_older_than_these_columns():
    assert advise({name: np.array([]) for name in JOB}) == []
    assert advise({"principal_busy": np.array([0.5])}) == []
