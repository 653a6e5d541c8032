"""Environments from elsewhere: the documented example, odd spaces, vector ones, parameters."""

import re
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from conftest import ROOT, SMALL, checkpoints, run
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from hpc_maml import envs
from hpc_maml.errors import InputError

SIZES = {"num_tasks": 2, "episodes_per_task": 3}
HERE = __name__


def generators(*seeds):
    return [np.random.Generator(np.random.Philox(key=seed)) for seed in seeds]


class Walk(gymnasium.Env):
    """Start near 0, walk by choices 5, 6, 7 or by a 2 x 1 box; end at +-reach, the task."""

    def __init__(self, discrete=True, limit=30):
        self.discrete, self.limit, self.reach = discrete, limit, None
        self.observation_space = spaces.Dict(
            {"parity": spaces.Discrete(2), "place": spaces.Box(-99, 99, (2, 1), np.float64)}
        )
        box = spaces.Box(-1, 1, (2, 1), np.float32)
        self.action_space = spaces.Discrete(3, start=5) if discrete else box

    def sample_tasks(self, rng, n):
        return rng.uniform(2, 4, n)

    def set_task(self, task):
        assert isinstance(task, float)
        self.reach = task

    def _observation(self):
        return {"parity": int(self.place[0, 0]) % 2, "place": self.place.copy()}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.uniform(-1, 1, (2, 1)), 0
        return self._observation(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.steps += 1
        move = np.full((2, 1), action - 6.0) if self.discrete else action
        self.place = self.place + move + self.np_random.standard_normal((2, 1))
        far = bool(abs(self.place[0, 0]) > self.reach)
        return self._observation(), -self.reach, far, self.steps >= self.limit, {}


class Walks(SyncVectorEnv):
    """The same walks as a vector environment."""

    autoreset = AutoresetMode.NEXT_STEP

    def __init__(self, num_envs, **kwargs):
        makers = [lambda: Walk(**kwargs)] * num_envs
        super().__init__(makers, autoreset_mode=self.autoreset)

    def sample_tasks(self, rng, n):
        return self.envs[0].sample_tasks(rng, n)

    def set_task(self, task):
        for env in self.envs:
            env.set_task(task)


class StoppedWalks(Walks):
    autoreset = AutoresetMode.DISABLED


class RestartedWalks(Walks):
    autoreset = AutoresetMode.SAME_STEP


class Taskless(Walk):
    sample_tasks = None


class Bounded(Taskless):
    def __init__(self, limit=10):
        if limit > 20:
            raise ValueError("at most 20.")
        super().__init__(limit=limit)


class Wordless(Walk):
    def render(self):
        return None


class WordyTasks(Walk):
    def sample_tasks(self, rng, n):
        return ["far"] * n


class OddActions(Walk):
    def __init__(self):
        super().__init__()
        self.action_space = spaces.MultiBinary(3)


class OddObservations(Walk):
    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Sequence(spaces.Discrete(2))


def rolled_out(env, steps=12):
    """Return all that a batch gives for fixed tasks, seeds and actions."""
    env.set_tasks([[2.5], [3.5]])
    results = [(env.reset(options={"generators": generators(1, 2)})[0],)]
    rng = np.random.default_rng(0)
    for _ in range(steps):
        if isinstance(env.single_action_space, spaces.Discrete):
            actions = rng.integers(3, size=6)
        else:
            actions = rng.uniform(-1.5, 1.5, (6, 2))
        results.append(env.step(actions)[:4])
    return results


@pytest.mark.parametrize("discrete", [True, False])
def test_single_environments_go_as_if_stepped_by_hand(discrete):
    env = envs.make(f"{HERE}:Walk", **SIZES, discrete=discrete, limit=8, horizon=10)
    assert env.single_observation_space.shape == (4,)  # parity one-hot, place
    assert env.single_action_space == (
        spaces.Discrete(3) if discrete else spaces.Box(-1, 1, (2,), np.float32)
    )
    results = rolled_out(env)
    rng, actions = np.random.default_rng(0), []
    for _ in range(12):
        drawn = rng.integers(3, size=6) + 5 if discrete else rng.uniform(-1.5, 1.5, (6, 2))
        actions.append(drawn)
    seeds = [seed for rng in generators(1, 2) for seed in rng.integers(2**32, size=(3, 1))[:, 0]]
    ends = []
    for row, seed in enumerate(seeds):
        walk = Walk(discrete, limit=8)
        walk.set_task(2.5 if row < 3 else 3.5)
        seen, _ = walk.reset(seed=int(seed))
        terminated = truncated = False
        for step in range(13):
            expected = [*np.eye(2)[seen["parity"]], *seen["place"].ravel()]
            at_rest = step > 0 and (terminated or truncated)
            assert results[step][0][row].tolist() == np.float32(expected).tolist()
            if step == 12 or at_rest:
                break
            action = actions[step][row]
            if not discrete:
                action = action.clip(-1, 1).astype(np.float32).reshape(2, 1)
            seen, reward, terminated, truncated, _ = walk.step(action)
            _, rewards, ended, cut = results[step + 1]
            assert rewards[row] == reward
            assert (ended[row], cut[row]) == (terminated, truncated and not terminated)
        ends.append((step, terminated))
        for later in results[step + 1 :]:
            assert not any(part[row].any() for part in later)
    assert len({step for step, _ in ends}) > 1
    assert {end for _, end in ends} == {True, False}


@pytest.mark.parametrize("kind", ["Walks", "StoppedWalks", "RestartedWalks"])
def test_vector_environments_rest_whatever_their_autoreset_mode(kind):
    env = envs.make(f"{HERE}:{kind}", **SIZES, limit=8, horizon=10)
    results = rolled_out(env)
    seeds = [int(rng.integers(2**32, size=(3, 1))[0, 0]) for rng in generators(1, 2)]
    rng = np.random.default_rng(0)
    actions = [rng.integers(3, size=6) + 5 for _ in range(12)]
    for row in range(6):
        walk = Walk(limit=8)
        walk.set_task(2.5 if row < 3 else 3.5)
        walk.reset(seed=seeds[row // 3] + row % 3)  # as vector environments spread a seed
        done = False
        for step in range(12):
            observations, rewards, terminated, truncated = results[step + 1]
            if done:
                assert not any(part[row].any() for part in results[step + 1])
                continue
            seen, reward, *flags, _ = walk.step(actions[step][row])
            assert rewards[row] == reward
            assert [terminated[row], truncated[row]] == [flags[0], flags[1] and not flags[0]]
            done = any(flags)
            if not done:
                assert observations[row, 2:].tolist() == np.float32(seen["place"].ravel()).tolist()
        assert done
    with pytest.raises(ValueError, match="reset together"):
        env.reset(options={"reset_mask": np.arange(6) < 2})


@pytest.mark.parametrize("name", [f"{HERE}:Walk", f"{HERE}:Walks"])
def test_a_task_does_not_depend_on_its_neighbours(name):
    together = rolled_out(envs.make(name, **SIZES))
    for task in range(2):
        alone = envs.make(name, num_tasks=1, episodes_per_task=3)
        alone.set_tasks([[2.5 + task]])
        alone.reset(options={"generators": generators(1 + task)})
        rng = np.random.default_rng(0)
        for result in together[1:]:
            actions = rng.integers(3, size=6)[task * 3 : task * 3 + 3]
            for part, other in zip(alone.step(actions)[:4], result, strict=True):
                assert part.tobytes() == other[task * 3 : task * 3 + 3].tobytes()


def test_parameters_as_tasks():
    ranges = {"g": [5.0, 15.0], "max_torque": [1.0, 3.0]}  # an argument and an attribute
    env = envs.make("Pendulum-v1", **SIZES, task_ranges=ranges)
    tasks = env.sample_tasks(np.random.default_rng(0), 500)
    assert tasks.shape == (500, 2)
    assert (tasks.min(0) >= [5, 1]).all()
    assert (tasks.max(0) <= [15, 3]).all()
    assert tasks.mean(0) == pytest.approx([10, 2], rel=0.05)
    env.set_tasks([[6.0, 2.5], [14.0, 1.5]])
    env.reset(options={"generators": generators(1, 2)})
    actions = np.array([[-9.0], [9.0]]).repeat(3, 0)
    results = [env.step(actions) for _ in range(200)]
    assert results[-1][3].all()  # by Gymnasium's own time limit
    for row, (gravity, torque) in ((0, (6.0, 2.5)), (5, (14.0, 1.5))):
        pendulum = gymnasium.make("Pendulum-v1", g=gravity).unwrapped
        pendulum.max_torque = torque
        seed = generators(1, 2)[row // 3].integers(2**32, size=(3, 1))[row % 3, 0]
        pendulum.reset(seed=int(seed))
        for observations, rewards, *_ in results:
            # the bounds of its actions are those it was made with
            seen, reward, *_ = pendulum.step(actions[row].clip(-2, 2).astype(np.float32))
            assert observations[row].tolist() == seen.tolist()
            assert rewards[row] == reward


def test_our_own_ids_work_as_any_other():
    env = envs.make("hpc_maml/Navigation-v0", num_tasks=1, episodes_per_task=2)
    env.set_tasks([[0.3, 0.4]])
    env.reset(seed=0)
    assert env.step(np.zeros((2, 2)))[1] == pytest.approx([-0.5, -0.5])


@pytest.mark.parametrize(
    ("name", "kwargs", "sentence"),
    [
        ("nowhere:Walk", {}, "the module of 'nowhere:Walk' cannot be imported: No module named"),
        (f"{HERE}:Wlk", {}, r"has no 'Wlk' \(did you mean 'Walk'\?\)"),
        (f"{HERE}:generators", {}, "is not a Gymnasium environment"),
        (
            f"{HERE}:Taskless",
            {},
            "Taskless has no sample_tasks, and the configuration no env.kwargs",
        ),
        ("Pendulum-v1", {}, "Pendulum-v1 has no sample_tasks and no set_task, and the conf"),
        ("Pendulumm-v1", {}, r"no environment 'Pendulumm-v1' \(did you mean 'Pendulum-v1'"),
        (
            f"{HERE}:WordyTasks",
            {},
            r"sample_tasks\(rng, n\) of WordyTasks must return n tasks, all",
        ),
        (f"{HERE}:OddActions", {}, "actions of OddActions must be a Box of floats or Discrete"),
        (f"{HERE}:OddObservations", {}, "observations of OddObservations cannot be made an array"),
        ("Pendulum-v1", {"task_ranges": {"gg": [1, 2]}}, r"no attribute 'gg' \(did you mean 'g'"),
        ("Pendulum-v1", {"task_ranges": {"g": [2, 1]}}, r"must be name: \[lowest, highest\]"),
        ("Pendulum-v1", {"task_ranges": ["g"]}, r"must be name: \[lowest, highest\]"),
        ("Pendulum-v1", {"task_ranges": {}}, r"must be name: \[lowest, highest\]"),
        (
            f"{HERE}:Bounded",
            {"task_ranges": {"limit": [1, 30]}},
            r"Bounded refuses limit=29.71 \(ValueError: at most 20\)",
        ),
    ],
)
def test_what_does_not_suit_is_refused_with_a_reason(name, kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        envs.make(name, **SIZES, **kwargs)


@pytest.mark.parametrize("drawn", [None, "a tree", np.zeros((3, 4)), [np.zeros((3, 4, 3), "u1")]])
def test_what_render_returns_must_be_an_image(drawn, monkeypatch):
    env = envs.make(f"{HERE}:Wordless", **SIZES)
    monkeypatch.setattr(Wordless, "render", lambda self: drawn)
    with pytest.raises(InputError, match=r"Wordless: render must return an image, uint8 \[height"):
        env.image(0)


def test_the_documented_example_trains_on_any_ranks(tmp_path):
    text = (ROOT / "docs" / "own_environment.md").read_text()
    (module,) = re.findall(r"```python\n# (\w+)\.py\n", text)
    (tmp_path / f"{module}.py").write_text(
        re.findall(rf"```python\n(# {module}\.py.*?)```", text, re.S)[0]
    )
    (section,) = re.findall(rf"```yaml\n(env:\n  name: {module}:.*?)```", text, re.S)
    (tmp_path / "example.yaml").write_text(section)
    words = ("--config", "example.yaml", *SMALL, "num_iterations=2")
    contents = []
    for ranks in (None, 3):
        folder = f"runs/{ranks}"
        run(ranks, *words, "--run-dir", folder)  # python -m imports from the present folder
        contents.append((tmp_path / folder / "checkpoints" / "iteration_000002.h5").read_bytes())
    assert contents[0] == contents[1]


class ShortObservations(Walk):
    """It says that there are two numbers, and returns one."""

    def __init__(self):
        super().__init__(discrete=False)
        self.observation_space = spaces.Box(-99, 99, (2,), np.float32)

    def _observation(self):
        return self.place[0]


class OldReset(ShortObservations):
    """It resets as environments of Gym did."""

    def reset(self, *, seed=None, options=None):
        return np.zeros(2), super().reset(seed=seed, options=options)[1], {}


class OldStep(ShortObservations):
    """It steps as environments of Gym did."""

    def _observation(self):
        return self.place.ravel()

    def step(self, action):
        return self._observation(), 0.0, False, {}


class ManyRewards(OldStep):
    def step(self, action):
        return self._observation(), [1.0, 2.0], False, False, {}


class NoSuccess(OldStep):
    reports_success = True

    def step(self, action):
        return self._observation(), 0.0, False, False, {}


class Tenfold(gymnasium.Wrapper):
    """Tasks ten times as large as those of the environment inside."""

    def __init__(self):
        super().__init__(gymnasium.wrappers.TimeLimit(Walk(), 5))

    def sample_tasks(self, rng, n):
        return np.full(n, 0.3)

    def set_task(self, task):
        self.env.unwrapped.set_task(10 * task)


def test_the_outermost_layer_that_has_tasks_sets_them():
    env = envs.make(f"{HERE}:Tenfold", **SIZES)
    tasks = env.sample_tasks(np.random.default_rng(0), 2)
    assert tasks.tolist() == [[0.3], [0.3]]
    env.set_tasks(tasks)
    assert {each.unwrapped.reach for each in env._envs} == {3.0}


def test_an_id_may_stand_for_a_class_itself():
    gymnasium.register("WalkItself-v0", entry_point=Walk)
    env = envs.make("WalkItself-v0", **SIZES, task_ranges={"limit": [5, 6]})
    env.set_tasks([[5.0], [6.0]])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("OldStep", "step must return an observation, a reward, whether the episode terminated"),
        ("ManyRewards", "step must return one reward, not [1.0, 2.0]"),
        ("NoSuccess", "reports_success, but infos have no success"),
        (
            "ShortObservations",
            "returned an observation of [1] numbers, its observation_space has [2]",
        ),
        ("OldReset", "reset must return an observation and infos"),
    ],
)
def test_what_an_environment_returns_is_checked(name, said):
    err = run(HERE, f"env.name=test_foreign:{name}", *SMALL, code=2).stderr
    assert f"{name}" in err
    assert said in err


def test_ranks_do_not_share_the_episodes_of_a_vector_environment():
    words = ("env.name=test_foreign:Walks", *SMALL, "meta_batch_size=3", "num_iterations=2")
    for ranks in (1, 2):
        run(ranks, *words, "--run-dir", f"runs/{ranks}")
    assert checkpoints(Path("runs/1")) == checkpoints(Path("runs/2"))


def test_an_unsuitable_environment_is_one_sentence():
    result = run(2, "env.name=Pendulum-v1", *SMALL, code=2)
    assert result.stderr.count("\n") == 1
    assert "Pendulum-v1 has no sample_tasks and no set_task" in result.stderr


def test_the_run_folder_is_named_after_the_class():
    words = (*SMALL, "num_iterations=1", "env.name=hpc_maml.envs.navigation:Navigation")
    assert "run folder runs/Navigation-" in run(None, *words).stdout
