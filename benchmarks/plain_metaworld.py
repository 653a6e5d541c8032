"""The package's scripted policies on the package alone, on whatever MuJoCo it finds.

    python -m benchmarks.against_metaworld policies --json goals.json
    python benchmarks/plain_metaworld.py goals.json

Needs metaworld alone, so that it runs beside the older MuJoCo that metaworld asks for. On that of
today the package has to be mended first, see hpc_maml/envs/metaworld_package.py.
"""

import importlib.metadata
import json
import pickle
import sys
import warnings
from pathlib import Path

import numpy as np
from metaworld import Task
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP


def episode(name: str, goal: list[float]) -> tuple[bool, float]:
    """Return whether an episode succeeded at any step, and its return."""
    env = ALL_V3_ENVIRONMENTS[name]()
    data = {"rand_vec": np.array(goal), "env_cls": type(env), "partially_observable": True}
    env.set_task(Task(name, pickle.dumps(data)))
    env._partially_observable = False  # the policies see the goal; it changes nothing else
    del env.sawyer_observation_space
    seen, _ = env.reset()
    policy, success, total = ENV_POLICY_MAP[name](), False, 0.0
    for _ in range(env.max_path_length):
        action = policy.get_action(seen.astype(np.float32).astype(np.float64))
        seen, reward, _, _, info = env.step(np.array(action, np.float32).clip(-1, 1))
        success |= bool(info["success"])
        total += float(reward)
    return success, total


def main() -> None:
    """Print the returns beside those of the file, a row for each task."""
    warnings.simplefilter("ignore")
    print(f"mujoco {importlib.metadata.version('mujoco')}")
    rows = json.loads(Path(sys.argv[1]).read_text())
    succeeded = far = 0
    for row in rows:
        size = ALL_V3_ENVIRONMENTS[f"{row['task']}-v3"]()._random_reset_space.low.size
        found = [episode(f"{row['task']}-v3", goal[:size]) for goal in row["goals"]]
        done, mean = sum(each for each, _ in found), float(np.mean([total for _, total in found]))
        change = 100 * (row["return"] / mean - 1)
        succeeded, far = succeeded + done, far + (abs(change) > 5)
        cells = (row["task"], f"{done} / {len(found)}", f"{mean:.0f}", f"{change:+.1f} %")
        print(f"| {' | '.join(cells)} |", flush=True)
    share = 100 * succeeded / sum(row["episodes"] for row in rows)
    print(f"{share:.1f} % succeeded; the returns of {far} tasks differ by more than 5 %")


if __name__ == "__main__":
    main()
