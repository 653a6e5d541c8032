"""What an agent with a GPU does, on tensors in memory of the host: the same lines run there."""

from types import SimpleNamespace

import numpy as np
import pytest

from hpc_maml.config import load_config
from hpc_maml.mpi.exact_sum import from_integers, to_integers
from hpc_maml.mpi.gpu import Gpu
from hpc_maml.parts import make_env
from hpc_maml.roles.agent import choose_gpu
from hpc_maml.run.job import prepare
from hpc_maml.sampling.trajectory import batch_dtype, samples, trajectories

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


def uploaded(gpu, dtype, batches):
    """Send the batches ``{(task, phase): [1]}``, the last first; return the episodes."""
    gpu.expect(dtype, 1 + max(task for task, _ in batches), 1 + max(phase for _, phase in batches))
    for (task, phase), batch in reversed(batches.items()):
        pinned = gpu.empty_batch(dtype)
        pinned[:] = batch
        gpu.upload(pinned, task, phase)
    return gpu.trajectories()


def test_episodes_and_samples_of_all_tasks_have_the_bits_of_each_alone(dtype):
    batches = {
        (task, phase): filled(np.zeros(1, dtype), 10 * task + phase)
        for task in range(TASKS)
        for phase in range(PHASES)
    }
    for phase, found in enumerate(uploaded(Gpu("cpu"), dtype, batches)):
        for task in range(TASKS):
            expected = trajectories(batches[task, phase][0])
            pairs = [(found, expected), (samples(found), samples(expected))]
            for tensors, arrays in pairs:
                for name, tensor, array in zip(tensors._fields, tensors, arrays, strict=True):
                    assert tensor[task].numpy().dtype == array.dtype, name
                    assert tensor[task].numpy().shape == array.shape, name
                    assert tensor[task].numpy().tobytes() == array.tobytes(), name


def test_a_batch_is_kept_until_it_has_been_copied(dtype):
    gpu = Gpu("cpu")
    gpu.expect(dtype, 1, 1)
    batch = filled(gpu.empty_batch(dtype), 1)
    gpu.upload(batch, 0, 0)
    assert gpu.in_flight[0] is batch
    gpu.trajectories()
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
    assert expected[-1] > 5
    gpu = Gpu("cpu")
    found = gpu.to_host(to_integers(gpu.array(terms)))
    assert found.tobytes() == expected.tobytes()
    assert to_integers(gpu.array(terms[:0])).tolist() == [0] * 801


WORDS = {
    "maml_trpo": ["policy.hidden_sizes=[8]"],
    "learned step sizes": ["policy.hidden_sizes=[8]", "algorithm.learn_step_sizes=parameter"],
    "first order": ["policy.hidden_sizes=[8]", "algorithm.first_order=true"],
    "low variance curvature": ["policy.hidden_sizes=[8]", "algorithm.inner_loss=lvc"],
    "dice": [
        "policy.hidden_sizes=[8]",
        "algorithm.inner_loss=dice",
        "algorithm.num_inner_steps=2",
        "algorithm.learn_step_sizes=layer",
    ],
    "fewer samples": ["policy.hidden_sizes=[8]", "algorithm.fisher_fraction=0.3"],
    "pretrain": ["policy.hidden_sizes=[8]", "algorithm.name=pretrain"],
    "promp": [
        "policy.hidden_sizes=[8]",
        "algorithm.name=promp",
        "algorithm.num_inner_steps=2",
        "algorithm.learn_step_sizes=layer",
        "algorithm.kl_target=0.01",
    ],
    "rl2": [
        "policy.hidden_size=8",
        "algorithm.name=rl2",
        "algorithm.episodes_per_trial=2",
        "algorithm.minibatches=2",
    ],
    "torch module": ["policy.name=test_torch_module:Perceptron"],
}


def exact(terms):
    terms = terms if isinstance(terms, np.ndarray) else terms.numpy()
    return from_integers(to_integers(terms))


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("env", ["navigation", "bandit"])
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_an_update_of_every_algorithm_on_tensors_is_that_on_arrays(words, env, normalised):
    """All that an agent with a GPU does: upload, digest all tasks at once, and update."""
    words = [*words, f"env.name={env}", "horizon=6", "fast_batch_size=3"]
    words.append(f"normalise_observations={str(normalised).lower()}")
    if not {"algorithm.name=promp", "algorithm.name=rl2"} & {*words}:
        words.append("algorithm.cg_iters=3")  # more would magnify the rounding
    config = load_config(None, words)
    job = prepare(config, make_env(config, 1))
    algorithm, phases = job.algorithm, job.algorithm.num_phases(False)
    state = algorithm.initial_state(np.random.default_rng(0))
    batches = {
        (task, phase): episodes(job.dtype, task, phase)
        for task in range(TASKS)
        for phase in range(phases)
    }
    gpu = Gpu("cpu")
    on_gpu = {name: gpu.array(values) for name, values in state.items()}
    digests = [
        [algorithm.digest(on_gpu, uploaded(gpu, job.dtype, batches))],
        [
            algorithm.digest(state, [trajectories(batches[task, phase]) for phase in range(phases)])
            for task in range(TASKS)
        ],
    ]
    found, expected = (
        algorithm.update(state, some, TASKS, exact, np.random.default_rng(1)) for some in digests
    )
    assert expected.reason == found.reason == ""
    assert found.state.keys() == expected.state.keys() == state.keys()
    assert abs(expected.state["theta"] - state["theta"]).max() > 1e-4
    for name, values in expected.state.items():
        assert isinstance(found.state[name], np.ndarray), name
        assert found.state[name].dtype == values.dtype == state[name].dtype, name
        scale = abs(values).max() if values.size else 0
        np.testing.assert_allclose(
            found.state[name], values, rtol=1e-3, atol=2e-3 * scale, err_msg=name
        )
    assert found.metrics.keys() == expected.metrics.keys()
    for name, value in expected.metrics.items():
        assert found.metrics[name] == pytest.approx(value, rel=1e-2, abs=1e-4), name


def episodes(dtype, task, phase):
    """Return a batch [1] of ragged episodes, as of a policy that is near to a random one."""
    rng = np.random.default_rng([task, phase])
    batch = np.zeros(1, dtype)
    horizon, number = batch["rewards"].shape[1:]
    lengths = rng.integers(2, horizon + 1, number)
    valid = np.arange(horizon)[:, None] < lengths
    batch["task"], batch["phase"], batch["lengths"] = task, phase, lengths
    shape = batch["observations"].shape
    batch["observations"] = rng.standard_normal(shape) * valid[..., None]
    if batch["actions"].dtype == np.int64:
        batch["actions"] = rng.integers(2, size=batch["actions"].shape) * valid
        batch["log_probs"] = -np.log(5) * valid
    else:
        batch["actions"] = rng.standard_normal(batch["actions"].shape) * valid[..., None]
        log_probs = -0.5 * (batch["actions"] ** 2 + np.log(2 * np.pi)).sum(-1)
        batch["log_probs"] = log_probs * valid
    for name in ("rewards", "advantages"):
        batch[name] = rng.standard_normal(valid.shape) * valid
    batch["truncated"] = np.arange(horizon)[:, None] == lengths - 1
    return batch


@pytest.mark.parametrize("setting", ["auto", "cuda"])
def test_agents_of_a_node_take_its_gpus_in_turn(setting, monkeypatch, tmp_path):
    monkeypatch.setattr("hpc_maml.mpi.gpu.count_gpus", lambda: 2)
    monkeypatch.setattr("hpc_maml.mpi.gpu.Gpu", str)
    monkeypatch.setattr("hpc_maml.roles.agent.GPU_DRIVERS", (tmp_path,))
    places = [SimpleNamespace(local_agent=n) for n in range(4)]
    chosen = [choose_gpu(setting, place) for place in places]
    assert chosen == ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert choose_gpu("cpu", places[0]) is None
