"""All agents take the same way through memory, whatever each of them finds."""

import numpy as np
import pytest

from hpc_maml.config import load_config
from hpc_maml.errors import InputError
from hpc_maml.mpi import gpu_sums
from hpc_maml.mpi.exact_sum import ExactSum
from hpc_maml.mpi.gpu import Gpu
from hpc_maml.mpi.gpu_sums import sum_of_agents
from hpc_maml.mpi.topology import build_topology, smallest
from hpc_maml.run.training import Training
from hpc_maml.stopping import StopSignal

LIMIT = 60.0
CANNOT, UNSURE = "library says that it cannot", "library does not say whether it can"
HOST = "through memory of the host, as "


@pytest.fixture
def agents(comm):
    """Return a topology in which every rank is an agent."""
    topology = build_topology(comm, comm.size, "split", LIMIT)
    yield topology
    topology.free()


def found(agents, monkeypatch, setting="auto", gpu=True, answer=True, trial=""):
    """Return what ``sum_of_agents`` decides for this rank, and check what it decided on."""
    tried = []

    def try_sum(device, limit):
        assert limit < LIMIT
        tried.append(device)
        return trial

    monkeypatch.setattr(gpu_sums, "ask_library", lambda: answer)
    monkeypatch.setattr(gpu_sums, "try_sum", try_sum)
    add, words = sum_of_agents(setting, Gpu("cpu") if gpu else None, agents, LIMIT)
    terms = np.arange(3.0)[None]
    assert np.array_equal(add(terms), agents.world.size * terms[0])
    if agents.world.rank or setting != "auto" or answer is not True:
        assert not tried  # one agent of a node tries for all
    return add.direct, words


def last(agents):
    return agents.world.rank == agents.world.size - 1


@pytest.mark.parametrize("setting", ["auto", "on"])
def test_memory_of_gpus_where_nobody_objects(agents, monkeypatch, setting):
    alone = agents.world.size == 1
    expected = (False, "none, as there is one agent") if alone else (True, "in memory of the GPUs")
    assert found(agents, monkeypatch, setting) == expected


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ({"setting": "off"}, "mpi.cuda_aware is off"),
        ({"answer": False}, CANNOT),
        ({"answer": None}, UNSURE),
        ({"trial": "a trial was ended by SIGSEGV"}, "a trial was ended by SIGSEGV"),
    ],
)
def test_one_that_objects_decides_for_all(agents, monkeypatch, case, words):
    if agents.world.size == 1:
        return
    objector = agents.world.rank == 0 if "trial" in case else last(agents)
    direct, text = found(agents, monkeypatch, **case if objector else {})
    assert not direct
    assert text.startswith(HOST)
    assert (words if objector else "another agent needs it") in text


def test_an_agent_without_a_gpu_decides_for_all_and_has_nothing_to_say(agents, monkeypatch):
    without = last(agents)
    direct, text = found(agents, monkeypatch, gpu=not without)
    assert not direct
    assert text == ("" if without else f"{HOST}another agent needs it")


def test_a_wrong_sum_between_agents_is_noticed_before_the_first_step(agents, monkeypatch):
    if agents.world.size == 1:
        return
    original = ExactSum._add_on_gpu
    if last(agents):
        monkeypatch.setattr(ExactSum, "_add_on_gpu", lambda *args: original(*args) * 2)
    direct, text = found(agents, monkeypatch)
    assert not direct
    assert text == HOST + ("a trial gave a wrong sum" if last(agents) else "another agent needs it")


def test_on_is_refused_by_one_where_the_library_cannot(agents, monkeypatch):
    first = 1 if agents.world.size > 1 else 0
    refusing = agents.world.rank >= first
    monkeypatch.setattr(gpu_sums, "ask_library", lambda: not refusing)
    if agents.world.rank == first:
        with pytest.raises(InputError, match="cuda_aware is on, but the MPI library says"):
            sum_of_agents("on", Gpu("cpu"), agents, LIMIT)
        if first:  # it would end the job; here the others are let go
            smallest(agents.agent_comm, 0, LIMIT)
    else:
        assert not sum_of_agents("on", Gpu("cpu"), agents, LIMIT)[0].direct


SMALL = (
    "num_iterations=2",
    "algorithm.cg_iters=3",  # more would magnify the rounding
    "meta_batch_size=7",
    "fast_batch_size=3",
    "horizon=12",
    "policy.hidden_sizes=[8, 8]",
    "topology.layout=split",
    "mpi.wait_limit=60",
)


def returns(comm, folder, monkeypatch, capsys, gpu: bool, setting="auto"):
    """Train on every rank; return the metrics of rank 0, with what was printed."""
    import h5py

    choose = (lambda *_: Gpu("cpu")) if gpu else (lambda *_: None)
    monkeypatch.setattr("hpc_maml.run.job.choose_gpu", choose)
    monkeypatch.setattr(gpu_sums, "ask_library", lambda: True)
    monkeypatch.setattr(gpu_sums, "try_sum", lambda *_: "")
    words = [*SMALL, f"mpi.cuda_aware={setting}", f"topology.agents={comm.size}"]
    run = Training(comm, lambda: load_config(None, words), folder, StopSignal())
    assert run.train() == 0
    if comm.rank:
        return None
    with h5py.File(folder / "metrics.h5") as file:
        values = {name: column[:] for name, column in file["tasks"].items()}
        values |= {name: file["iterations"][name][:] for name in ("kl_after", "gradient_norm")}
        words = file.attrs.get("sums_of_agents", "")
    printed = [line for line in capsys.readouterr().out.splitlines() if "sums between" in line]
    assert len(printed) == bool(words)
    assert all(line.endswith(f"sums between agents: {words}") for line in printed)
    return values, words


def test_a_job_on_tensors_learns_what_one_on_arrays_does(comm, tmp_path, monkeypatch, capsys):
    arrays, direct, staged = (
        returns(comm, tmp_path / str(index), monkeypatch, capsys, *case)
        for index, case in enumerate([(False,), (True,), (True, "off")])
    )
    if comm.rank:
        return
    assert arrays[1] == ""
    if comm.size > 1:
        assert direct[1] == "in memory of the GPUs"
        assert staged[1] == f"{HOST}mpi.cuda_aware is off"
    else:
        assert direct[1] == staged[1] == "none, as there is one agent"
    for name, values in arrays[0].items():
        np.testing.assert_array_equal(direct[0][name], staged[0][name])
        np.testing.assert_allclose(direct[0][name], values, rtol=2e-3, err_msg=name)
        assert np.isfinite(values).all()
