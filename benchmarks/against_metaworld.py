"""Meta-World here and as the package steps it: speed, and whether its scripted policies succeed.

    python -m benchmarks.against_metaworld speed [--tasks NAME ...] [--rounds N] [--json FILE]
    python -m benchmarks.against_metaworld policies [--episodes N] [--tasks NAME ...] [--json FILE]

Needs the package (docs/metaworld.md) and Linux.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import mujoco
import numpy as np
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from benchmarks.table import Row, compare, show, write
from hpc_maml.envs import make, metaworld_package
from hpc_maml.envs.mujoco_timers import stop_timers
from hpc_maml.storage.meta_tests import half_width

PHASES, EPISODES, STEPS = 2, 10, 500  # of a task, as in ML1 and ML10
TASKS = 10  # that an observer takes side by side


def speed(tasks: Sequence[str] | None, rounds: int) -> list[Row]:
    """Return steps per second of CPU time, in turn: both phases of a task, with their resets.

    Of each class, and of as many steps of all classes of ML10, which are the tasks without others.
    Ours steps ten tasks of a class side by side, as an observer in ML1 does; the package steps one.
    """
    rows = []
    ml10 = make("metaworld_ml10", num_tasks=1, episodes_per_task=1).classes
    of_ml10: dict[str, list[list[float]]] = {}  # rates [class][round]
    actions = np.random.default_rng(0).uniform(-1, 1, (STEPS, TASKS * EPISODES, 4))
    actions = actions.astype(np.float32)
    for name in tasks or ml10:
        env = make("metaworld_ml1", num_tasks=TASKS, episodes_per_task=EPISODES, task=name)
        drawn = env.sample_tasks(np.random.default_rng(0), TASKS)
        makers = [lambda name=name, task=drawn[0]: metaworld_package.started(name, task[1:])[0]]
        plain = {"SyncVectorEnv": SyncVectorEnv, "AsyncVectorEnv": AsyncVectorEnv}
        mujoco.set_mjcb_time(None)  # as MuJoCo's package has it: its timers run
        rivals = {words: kind(makers * EPISODES) for words, kind in plain.items()}

        def ours(env=env, drawn=drawn) -> None:
            stop_timers()
            env.set_tasks(drawn)
            for _ in range(PHASES):
                env.reset()
                for step in range(STEPS):
                    env.step(actions[step])

        def theirs(envs) -> None:
            mujoco.set_mjcb_time(None)
            for _ in range(PHASES):
                envs.reset()
                for step in range(STEPS - 1):  # the last one would reset them once more
                    envs.step(actions[step, :EPISODES])

        rates: dict[str, list[float]] = {"ours": []} | {words: [] for words in rivals}
        for _ in range(rounds):
            rates["ours"].append(TASKS * PHASES * EPISODES * STEPS / cpu_seconds(ours))
            for words, envs in rivals.items():
                taken = cpu_seconds(lambda envs=envs: theirs(envs))
                rates[words].append(PHASES * EPISODES * (STEPS - 1) / taken)
        for words, envs in rivals.items():
            envs.close()
            against = f"metaworld under {words}"
            rows.append(compare(name, "steps/s of a core", rates["ours"], rates[words], against))
        if name in ml10:
            for words, found in rates.items():
                of_ml10.setdefault(words, []).append(found)
    if set(ml10) <= set(tasks or ml10):
        together = {words: len(ml10) / (1 / np.array(of)).sum(0) for words, of in of_ml10.items()}
        for words in rivals:
            ours, found = together["ours"].tolist(), together[words].tolist()
            against = f"metaworld under {words}"
            rows.append(compare("the classes of ML10", "steps/s of a core", ours, found, against))
    return rows


def cpu_seconds(work: Callable[[], None]) -> float:
    """Return the CPU time of this process and its children, in s."""
    children = [child.pid for child in multiprocessing.active_children()]

    def now() -> float:
        ticks = sum(
            sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
            for pid in children
        )
        return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")

    before = now()
    work()
    return now() - before


def policies(tasks: Sequence[str], episodes: int) -> list[dict[str, object]]:
    """Return how the package's scripted policies fare on test goals, a row for each task."""
    from metaworld.policies import ENV_POLICY_MAP

    rows = []
    for name in tasks:
        env = make("metaworld_ml1", num_tasks=episodes, episodes_per_task=1, task=name)
        drawn = env.sample_test_tasks(np.random.default_rng(0), episodes)
        env.set_tasks(drawn)
        seen, _ = env.reset()
        policy = ENV_POLICY_MAP[f"{name}-v3"]()
        goals = np.array([own._target_pos for own in env._of_classes[0].envs])
        success, returns = np.zeros(episodes, bool), np.zeros(episodes)
        for _ in range(STEPS):
            seen[:, 36:] = goals
            with warnings.catch_warnings(action="ignore"):  # it may ask for more than it gets
                actions = [policy.get_action(each.astype(np.float64)) for each in seen]
            seen, rewards, _, _, infos = env.step(np.array(actions, np.float32))
            success |= infos["success"]
            returns += rewards
        row = {
            "task": name,
            "success": int(success.sum()),
            "episodes": episodes,
            "return": returns.mean(),
            "confidence_95": float(half_width(returns)),
            "goals": drawn[:, 1:].tolist(),
        }
        print("| {task} | {success} / {episodes} | {return:.0f} |".format(**row), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """Run one of the two."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("speed", "policies"))
    parser.add_argument("--tasks", nargs="+", metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--episodes", type=int, default=4, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    versions = [f"{each} {importlib.metadata.version(each)}" for each in ("metaworld", "mujoco")]
    print(", ".join(versions))
    if options.what == "speed":
        rows = speed(options.tasks, options.rounds)
        show(rows)
        if options.json:
            write(rows, options.json)
        return
    found = policies(options.tasks or metaworld_package.task_names(), options.episodes)
    done, number = (sum(row[key] for row in found) for key in ("success", "episodes"))
    print(f"| all | {done} / {number} ({100 * done / number:.1f} %) | |")
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
