"""What the archive of rollouts costs: seconds per iteration with and without it.

    python -m benchmarks.archive [--ranks 4] [--rounds 3] [--iterations 6] [key=value ...]

Jobs of half_cheetah_vel (40 tasks x 20 episodes x 100 steps) with archive.rollouts=every and =none
run in turn, so that a machine whose speed drifts treats both alike; in every other round the order
is reversed, and the first iteration of each job is left out. Exit code 1 if the median ratio
of the pairs is above --limit (1.03).
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import median

from benchmarks.iteration import medians

SIZE = ("env.name=half_cheetah_vel", "meta_batch_size=40", "fast_batch_size=20", "horizon=100")


def main() -> int:
    """Measure, and print a line for each pair and the summary; with --json, write its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=6)
    parser.add_argument("--limit", type=float, default=1.03)
    parser.add_argument("--json", type=Path)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()

    seconds: dict[str, list[float]] = {"every": [], "none": []}
    for number in range(options.rounds):
        for rollouts in list(seconds)[:: -1 if number % 2 else 1]:
            settings = [*SIZE, *options.settings, f"archive.rollouts={rollouts}"]
            clock = medians(options.ranks, settings, options.iterations)
            seconds[rollouts].append(clock["iteration_seconds"])
        every, none = (values[-1] for values in seconds.values())
        print(
            f"round {number + 1}: every {every:.3f} s, none {none:.3f} s, {every / none:.3f}",
            flush=True,
        )
    every, none = (median(values) for values in seconds.values())
    ratio = median(a / b for a, b in zip(*seconds.values(), strict=True))
    print(f"median: every {every:.3f} s, none {none:.3f} s; median ratio {ratio:.3f}")
    if options.json:
        row = {"name": "iteration_with_archive", "value": every, "unit": "s"}
        row |= {"yardstick": none, "ratio": ratio}
        options.json.write_text(json.dumps([row], indent=1) + "\n")
    return int(ratio > options.limit)


if __name__ == "__main__":
    sys.exit(main())
