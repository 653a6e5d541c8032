"""What an agent with a GPU does, on tensors in memory of the host: the same lines run there."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, start
from mpi4py import MPI

from hpc_maml.mpi.gpu import Gpu
from hpc_maml.mpi.exact_sum import to_integers
from hpc_maml.roles.agent import choose_gpu
from hpc_maml.sampling.trajectory import batch_dtype, samples

TASKS, PHASES = 3, 2
DTYPES = {
    "continuous": batch_dtype(5, 3, (4,), (2,), np.float32),
    "discrete": batch_dtype(5, 3, (4,), (), np.int64),
    "odd sizes": batch_dtype(7, 3, (5,), (1,), np.float32),  # the last field does not end on 8
}


@pytest.fixture(params=DTYPES.values(), ids=DTYPES)
def dtype(request):
    return request.param


def filled(batch: np.ndarray, seed: int) -> np.ndarray:
    """Fill a batch [1] with random bytes, but for ragged lengths."""
    rng = np.random.default_rng(seed)
    batch.view(np.uint8)[:] = rng.integers(256, size=batch.nbytes, dtype=np.uint8)
    horizon, episodes = batch["rewards"].shape[1:]
    batch["lengths"] = rng.integers(1, horizon + 1, episodes)
    return batch


def test_samples_of_all_tasks_have_the_bits_of_each_alone(dtype):
    gpu = Gpu("cpu")
    gpu.expect(dtype, TASKS, PHASES)
    batches = {
        (task, phase): filled(gpu.empty_batch(dtype), 10 * task + phase)
        for task in range(TASKS)
        for phase in range(PHASES)
    }
    for (task, phase), batch in reversed(batches.items()):
        gpu.upload(batch, task, phase)
    for phase, found in enumerate(gpu.samples()):
        for task in range(TASKS):
            expected = samples(batches[task, phase][0])
            for name, tensors, array in zip(found._fields, found, expected, strict=True):
                assert tensors[task].numpy().dtype == array.dtype, name
                assert tensors[task].numpy().shape == array.shape, name
                assert tensors[task].numpy().tobytes() == array.tobytes(), name


def test_a_batch_is_kept_until_it_has_been_copied(dtype):
    gpu = Gpu("cpu")
    gpu.expect(dtype, 1, 1)
    batch = filled(gpu.empty_batch(dtype), 1)
    gpu.upload(batch, 0, 0)
    assert gpu.in_flight[0] is batch
    gpu.samples()
    assert not gpu.in_flight


def test_iterations_of_one_size_share_their_memory(dtype):
    def places(gpu, *shape):
        gpu.expect(dtype, *shape)
        return [batches.data_ptr() for batches in gpu.phases]

    gpu = Gpu("cpu")
    first = places(gpu, TASKS, PHASES)
    assert places(gpu, TASKS, PHASES) == first
    for shape in ((TASKS + 1, PHASES), (TASKS, PHASES + 1), (0, 1)):
        assert len(places(gpu, *shape)) == shape[1]
        assert all(len(batches) == shape[0] for batches in gpu.phases)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_tensors_become_the_integers_of_arrays(kind):
    rng = np.random.default_rng(3)
    exponents = rng.integers(-45, 12, (7, 400))
    terms = rng.standard_normal((7, 400)) * 10.0**exponents  # from denormal to too large
    terms[0, :8] = [np.nan, np.inf, -np.inf, 2.0**26, -(2.0**26), -(2.0**-64), -0.0, 2.0**26 - 4]
    terms = terms.astype(kind)
    expected = to_integers(terms)
    assert expected.dtype == np.int64
    assert (expected[2] > 0).sum() > 5
    gpu = Gpu("cpu")
    found = gpu.to_host(to_integers(gpu.array(terms)))
    assert found.tobytes() == expected.tobytes()
    assert to_integers(gpu.array(terms[:0])).tolist() == np.zeros((3, 400)).tolist()


@pytest.mark.parametrize("setting", ["auto", "cuda"])
def test_agents_of_a_node_take_its_gpus_in_turn(setting, monkeypatch, tmp_path):
    monkeypatch.setattr("hpc_maml.mpi.gpu.count_gpus", lambda: 2)
    monkeypatch.setattr("hpc_maml.mpi.gpu.Gpu", str)
    monkeypatch.setattr("hpc_maml.roles.agent.GPU_DRIVERS", (tmp_path,))
    places = [SimpleNamespace(local_agent=n, agent_comm=MPI.COMM_SELF) for n in range(4)]
    chosen = [choose_gpu(setting, place, 10) for place in places]
    assert chosen == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert choose_gpu("cpu", places[0], 10) is None


def test_the_benchmark_runs_and_agrees():
    """At a size at which nothing is measured, and with tensors in memory of the host."""
    words = ["--parts", "outer_step", "agreement", "reduction", "--tasks", "2", "--horizon", "10"]
    words += ["--episodes", "5", "--agreement-tasks", "2", "--device", "cpu"]
    job = start(None, *words, python=(str(ROOT / "benchmarks" / "gpu.py"),))
    out, err = job.communicate(timeout=200)
    rows = {each["name"]: each for each in json.loads(out)}
    missed = [line for line in err.splitlines() if line.startswith("missed:")]
    # slow it may be
    assert missed in ([], ["missed: outer_step"]), err
    assert job.returncode == bool(missed)
    for name in ("gradient", "fisher_vector_product", "kl_after", "step"):
        assert 0 < rows[f"relative_error_of_{name}"]["ratio"] < 1
    assert rows["device_reduction_bits_23_KB"]["value"] == 1


def test_the_benchmark_needs_a_gpu():
    job = start(None, python=(str(ROOT / "benchmarks" / "gpu.py"),), CUDA_VISIBLE_DEVICES="")
    out, err = job.communicate(timeout=100)
    assert (job.returncode, out) == (1, "")
    assert err == ("benchmarks/gpu.py: torch finds no GPU here, so there is nothing to measure.\n")
