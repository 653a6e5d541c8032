"""What is advised after a run, against times worked out by hand."""

import numpy as np
import pytest

from hpc_maml.report.advice import Split, Work, advise, uneven

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
TEAM = {"observers": 9, "agents_busy": 0.3}


def table(*rows):
    """Return the columns of iterations that differ from JOB in these values."""
    return {name: np.array([(JOB | row)[name] for row in rows or ({},)]) for name in JOB}


def test_the_seconds_of_a_split():
    work = Work(observing=14.0, linearising=0.0, updating=4.0, other=0.5)
    assert work.seconds(Split(1, 7, team=False), 9) == pytest.approx(14 / 7 + 4 + 0.5)
    assert work.seconds(Split(3, 5, team=False), 9) == pytest.approx(14 / 3 + 4 / 3 + 0.5)
    assert work.seconds(Split(1, 9, team=True), 9) == pytest.approx(18 / 9 + 0.5)
    assert work.seconds(Split(1, 9, team=True), 2) == pytest.approx(18 / 2 + 0.5)


def test_a_team_is_best_without_gpus():
    busy, advice = advise(table(), 40, "split")
    assert busy == "busy: principal 1 %, agents 62 %, observers 31 % of the time"
    # 2.5 s instead of 6.5 s
    assert advice == "with topology.layout=team an iteration would take about 38 % of the time"
    pair = {"ranks": 2, "observers": 1, "cores": 2}
    assert "topology.layout=team" in advise(table(pair), 40, "split")[1]


def test_more_agents_where_each_has_a_gpu():
    _, advice = advise(table({"gpus": 2}), 40, "split")
    # two agents with three observers each: 14 / 6 + 4 / 2 + 0.5 = 4.83 s
    words = "topology.layout=split topology.agents=2"
    assert advice == f"with {words} an iteration would take about 74 % of the time"


def test_no_other_split_is_faster():
    slow_principal = {"iteration_seconds": 60.0, "agents_busy": 4 / 60, "observers_busy": 2 / 60}
    assert (
        advise(table(slow_principal), 40, "split")[1]
        == "no other split of 9 ranks would be much faster"
    )


def test_a_team_and_its_tasks():
    busy = "busy: principal 1 %, ranks 31 % observing and 30 % computing of the time"
    assert advise(table(TEAM), 18, "team") == [busy]
    assert advise(table(TEAM), 10, "team") == [busy, uneven(10, 9)]
    # some ranks rest
    few = TEAM | {"cores": 2, "observers": 2}
    assert advise(table(few), 20, "team") == [busy]


def test_what_would_be_even():
    assert uneven(20, 4) == ""
    assert uneven(20, 3) == ""  # 7, 7, 6
    assert uneven(20, 16) == (
        "20 tasks on 16 ranks: ranks are idle for 38 % of the outer step, which divides no task; "
        "meta_batch_size=32, or 10 or 20 ranks, would be even"
    )
    assert "meta_batch_size=32, or 20 ranks, would be even" in uneven(20, 32)


def test_one_rank_has_no_other_split():
    alone = {"ranks": 1, "agents": 1, "observers": 1}
    assert len(advise(table(alone), 7, "split")) == 1


def test_only_the_last_job_counts():
    earlier = {"ranks": 4, "observers": 2, "cores": 2, "update_seconds": 99.0}
    assert advise(table(earlier, earlier, {}, {}), 40, "split") == advise(table(), 40, "split")


def test_a_run_that_has_not_begun_or_is_older_than_these_columns():
    assert advise({name: np.array([]) for name in JOB}, 40, "split") == []
    assert advise({"principal_busy": np.array([0.5])}, 40, "split") == []
    flat = {"agents": 9, "observers": 9}  # each rank by itself, in a program without teams
    assert advise(table(flat), 10, "")[1] == uneven(10, 9)
