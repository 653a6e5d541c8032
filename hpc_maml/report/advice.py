"""How busy the roles were, and whether another split of the same ranks would have been faster."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

WORTH_SAYING = 0.9  # of the time an iteration takes now


@dataclass(frozen=True)
class Split:
    """How many ranks hold which role."""

    agents: int
    observers: int
    colocated: bool  # every rank agent and observer

    @property
    def settings(self) -> str:
        """The words that ask for it."""
        if self.colocated:
            return "topology.layout=colocated"
        return f"topology.layout=split topology.agents={self.agents}"


@dataclass(frozen=True)
class Work:
    """Seconds of one core in an iteration, and what is not shared."""

    observing: float
    linearising: float  # of agents, while others observe
    updating: float
    other: float

    def seconds(self, split: Split, cores: int) -> float:
        """Return how long an iteration takes, were nothing lost in sharing.

        Agents have equal shares of the tasks, so the smallest team is the slowest.
        """
        busy = split.agents if split.colocated else split.agents + split.observers
        sampling = (self.observing + self.linearising) / min(busy, cores)
        if not split.colocated:
            team = split.observers // split.agents
            sampling = max(sampling, self.observing / split.agents / team)
            sampling = max(sampling, self.linearising / split.agents)
        return sampling + self.updating / min(split.agents, cores) + self.other


def advise(metrics: Mapping[str, np.ndarray]) -> list[str]:
    """Return sentences on the last job of a run; ``metrics`` are columns of metrics.METRICS.

    Estimated from medians of the phase times; beside more or faster ranks, nothing is assumed to
    change. GPUs are assumed to be one for each agent.
    """
    if any(name not in metrics for name in NEEDED):  # a run of an older program
        return []
    columns = {name: np.asarray(metrics[name]) for name in NEEDED}
    if not len(columns["ranks"]):
        return []
    same = np.all([columns[name] == columns[name][-1] for name in COUNTS], axis=0)
    start = len(same) - np.argmin(same[::-1]) if not same.all() else 0
    now = {name: float(np.median(columns[name][start:])) for name in NEEDED}
    ranks, agents, observers, cores, gpus = (int(now[name]) for name in COUNTS)
    busy = ", ".join(
        f"{role} {100 * now[f'{role}_busy']:.0f} %" for role in ("principal", "agents", "observers")
    )
    sentences = [f"busy: {busy} of the time"]
    if ranks == 1:
        return sentences
    total, sampling, update = (
        now[f"{phase}_seconds"] for phase in ("iteration", "sampling", "update")
    )
    observing = now["observers_busy"] * observers * total
    linearising = max(0.0, (now["agents_busy"] * total - update) * agents)
    # where ranks share cores, each is busy for longer than it works
    shrink = min(1.0, cores * sampling / max(observing + linearising, 1e-9))
    work = Work(
        observing * shrink,
        linearising * shrink,
        update * min(agents, cores),
        max(0.0, total - sampling - update),
    )
    present = Split(agents, observers, colocated=agents == observers == ranks)
    best = min(_splits(ranks, gpus), key=lambda split: work.seconds(split, cores))
    ratio = work.seconds(best, cores) / work.seconds(present, cores)
    if best == present or ratio > WORTH_SAYING:
        sentences.append(f"no other split of {ranks} ranks would be much faster")
    else:
        sentences.append(
            f"with {best.settings} an iteration would take about {100 * ratio:.0f} % of the time"
        )
    return sentences


COUNTS = ("ranks", "agents", "observers", "cores", "gpus")
NEEDED = (
    *COUNTS,
    *("principal_busy", "agents_busy", "observers_busy"),
    *("iteration_seconds", "sampling_seconds", "update_seconds"),
)


def _splits(ranks: int, gpus: int) -> Iterator[Split]:
    """Yield the splits to choose from; those that compose roles are left out but for two ranks."""
    if not gpus:
        yield Split(ranks, ranks, colocated=True)
    for agents in range(1, (ranks - 1) // 2 + 1 if not gpus else min(gpus, (ranks - 1) // 2) + 1):
        yield Split(agents, ranks - 1 - agents, colocated=False)
    if ranks == 2:
        yield Split(1, 1, colocated=False)
