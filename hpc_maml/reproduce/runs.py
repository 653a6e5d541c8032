"""The runs of an experiment: what each has done, and the command that is next."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from hpc_maml.config import EvaluationConfig
from hpc_maml.names import is_ones_own
from hpc_maml.reproduce.experiment import Experiment, Method, configuration
from hpc_maml.storage.meta_tests import MetaTest, meta_test_path
from hpc_maml.storage.meta_tests import read as read_meta_test
from hpc_maml.storage.reader import Run
from hpc_maml.storage.run_folder import EVALUATIONS, has_config

WINDOW = 10  # iterations over which the return in training is averaged
SUCCESS = "post_update_success"  # in training, of environments that report it
RULE_FOLDER = "published_rule"  # of the meta-tests that are not made by ``evaluate``


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """One seed of a method; everything is read from its folder when it is asked for."""

    experiment: Experiment
    label: str  # of the method
    method: Method
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """Method and seed, in words."""
        return f"{self.label}, seed {self.seed}"

    @cached_property
    def run(self) -> Run:
        """The run; raises InputError before it has begun."""
        return Run(self.folder)

    @property
    def done(self) -> int:
        """The iterations that are done."""
        return self.run.committed_iterations if has_config(self.folder) else 0

    @property
    def returns(self) -> np.ndarray:
        """The return after adaptation in training, averaged over WINDOW iterations at most.

        ``[iterations]``; where a trial was published, that of all its episodes together.
        """
        phases = self.run.per_task["return_after_updates"].mean(1)  # [iterations, phases]
        episodes = configuration(self.method, self.seed).fast_batch_size
        is_trial = "trial" in self.method.published.scores
        return averaged(trial(phases, self.run.phase, episodes) if is_trial else phases[:, -1])

    @property
    def curve(self) -> np.ndarray:
        """What is drawn, ``[iterations]``: ``returns``, or where there is success that in percent.

        The latter is of the last phase, in training, averaged likewise.
        """
        success = self.run.per_task.get(SUCCESS)
        return self.returns if success is None else averaged(100 * success.mean(1))

    def first_at(self, level: float) -> int | None:
        """Return the first iteration at which ``returns`` are at a level, None before."""
        reached = np.flatnonzero(self.returns >= level)
        late = reached[reached + 1 >= WINDOW]
        return int(late[0]) + 1 if len(late) else None

    def is_trained(self) -> bool:
        """Tell whether training has ended: by its length, or at ``stop_at``.

        The latter is looked at after every chunk, so that it does not depend on when a job ended.
        """
        done = self.done
        if done >= self.method.iterations:
            return True
        level = self.method.stop_at
        return (
            level is not None
            and done >= WINDOW
            and done % self.experiment.chunk == 0
            and bool(self.returns[-1] >= level)
        )

    def train_words(self) -> list[str]:
        """Return the command that trains the next chunk."""
        chunk = self.experiment.chunk
        iterations = min(self.method.iterations, (self.done // chunk + 1) * chunk)
        return [
            *("train", "--config", str(self.method.config_file), "--run-dir", str(self.folder)),
            *(*self.method.settings, f"seed={self.seed}", f"num_iterations={iterations}"),
        ]

    @property
    def by_rule(self) -> bool:
        """Whether the meta-test is made by a rule of its own, not by ``evaluate``."""
        return self.method.test.rule != "evaluate"

    @property
    def test_path(self) -> Path:
        """The file of the meta-test of the last checkpoint."""
        test = self.method.test
        own = configuration(self.method, self.seed).evaluation.model_dump() | test.evaluation()
        folder = self.folder.parent / RULE_FOLDER if self.by_rule else self.folder / EVALUATIONS
        path = meta_test_path(folder, self.done, EvaluationConfig(**own), test.episodes)
        return path.with_name(f"{self.folder.name}_{path.name}") if self.by_rule else path

    def test_words(self) -> list[str]:
        """Return the command that makes the meta-test."""
        config = configuration(self.method, self.seed)
        names = (config.env.name, config.algorithm.name, config.policy.name)
        trust = ["--trust"] if any(map(is_ones_own, names)) else []  # who wrote the experiment did
        return ["evaluate", str(self.folder), *self.method.test.words(), *trust]

    def test(self) -> MetaTest | None:
        """Return the meta-test of the last checkpoint, if it is made; raises InputError."""
        path = self.test_path
        return read_meta_test(path) if path.exists() else None


def averaged(values: np.ndarray) -> np.ndarray:
    """Return the means ``[n]`` of each of the values ``[n]`` and those before, WINDOW at most."""
    ends = range(1, len(values) + 1)
    return np.array([values[max(0, end - WINDOW) : end].mean() for end in ends])


def planned(experiment: Experiment, folder: Path, seeds: int) -> list[PlannedRun]:
    """Return the runs of an experiment, in ``folder``: all methods of a seed before the next."""
    return [
        PlannedRun(experiment, label, method, seed, folder / f"{label}-{seed}")
        for seed in range(1, seeds + 1)
        for label, method in experiment.methods.items()
    ]


def trial(returns: np.ndarray, phase: str, episodes: int) -> np.ndarray:
    """Return the return of all episodes of a trial together, of mean returns ``[..., phases]``.

    A phase is one ``"episode"``, or is played by ``episodes`` of them with the same policy.
    """
    return returns.sum(-1) * (1 if phase == "episode" else episodes)


def scores(run: PlannedRun) -> dict[str, float]:
    """Return the scores of a run, by name: those of its meta-test, and in training.

    ``after_k``: mean return after k updates; ``trial``: of all episodes of a task together;
    ``success``: share of successful episodes in the last phase, ``training_success``: the same in
    the last tenth of the iterations of training, in percent.
    """
    found: dict[str, float] = {}
    success = run.run.per_task.get(SUCCESS) if run.done else None
    if success is not None:
        found["training_success"] = float(100 * success[-max(1, len(success) // 10) :].mean())
    test = run.test() if run.done else None
    if test is None:
        return found
    returns = test.returns["run"]  # [tasks, phases]
    if test.phase == "updates":
        found |= {f"after_{number}": float(each) for number, each in enumerate(returns.mean(0))}
    episodes = run.method.test.episodes or configuration(run.method, run.seed).fast_batch_size
    found["trial"] = float(trial(returns, test.phase, episodes).mean())
    if "run" in test.success:
        found["success"] = float(100 * test.success["run"][:, -1].mean())
    return found


def next_words(run: PlannedRun) -> list[str]:
    """Return the next command of a run; empty when it is trained and tested."""
    if not run.is_trained():
        return run.train_words()
    if run.by_rule or run.test_path.exists():
        return []
    return run.test_words()


def commands(run: PlannedRun) -> Iterator[str]:
    """Yield the commands that make a run at once, as one would give them in a checkout."""
    train = run.train_words()
    train[2] = f"configs/{run.method.config}.yaml"
    train[-1] = f"num_iterations={max(run.done, 1)}"
    yield f"python -m hpc_maml {shlex.join(train)}"
    test = run.method.test
    if run.by_rule:
        words = [str(run.folder), "--step-sizes", *map(str, test.numbers)]
        yield f"python -m hpc_maml.reproduce.{test.rule} {shlex.join(words)}"
    else:
        yield f"python -m hpc_maml {shlex.join(run.test_words())}"
