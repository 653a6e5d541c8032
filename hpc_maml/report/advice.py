"""How busy the ranks were, and whether the same ranks could have been faster."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

WORTH_SAYING = 0.9  # of the time an iteration takes now


@dataclass(frozen=True)
class Split:
    """How many ranks hold which role."""

    agents: int
    observers: int
    team: bool  # every rank observes and computes

    @property
    def settings(self) -> str:
        """The words that ask for it."""
        if self.team:
            return "topology.layout=team"
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
        computing = split.observers if split.team else split.agents
        busy = split.observers if split.team else split.agents + split.observers
        sampling = (self.observing + self.linearising) / min(busy, cores)
        if not split.team:
            team = split.observers // split.agents
            sampling = max(sampling, self.observing / split.agents / team)
            sampling = max(sampling, self.linearising / split.agents)
        return sampling + self.updating / min(computing, cores) + self.other


def advise(metrics: Mapping[str, np.ndarray], num_tasks: int, layout: str) -> list[str]:
    """Return sentences on the last job of a run; ``metrics`` are columns of metrics.METRICS.

    ``num_tasks`` are those of an iteration, ``layout`` is that of the job; older programs did not
    keep it. Times are estimated from medians of the phase times;
    beside more or faster ranks, nothing is assumed to change. GPUs are assumed to be one for each
    agent.
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
    busy = {role: f"{100 * now[f'{role}_busy']:.0f} %" for role in BUSY}
    if layout == "team" or agents == observers == ranks:  # who observes also computes
        sentence = (
            f"busy: principal {busy['principal']}, ranks {busy['observers']} observing and "
            f"{busy['agents']} computing"
        )
        return [f"{sentence} of the time", *filter(None, [uneven(num_tasks, observers)])]
    sentences = [f"busy: {', '.join(f'{role} {text}' for role, text in busy.items())} of the time"]
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
    present = Split(agents, observers, team=False)
    best = min(_splits(ranks, gpus), key=lambda split: work.seconds(split, cores))
    ratio = work.seconds(best, cores) / work.seconds(present, cores)
    if best == present or ratio > WORTH_SAYING:
        sentences.append(f"no other split of {ranks} ranks would be much faster")
    else:
        sentences.append(
            f"with {best.settings} an iteration would take about {100 * ratio:.0f} % of the time"
        )
    return sentences


def uneven(num_tasks: int, ranks: int) -> str:
    """Return a sentence on tasks that are not even for the ranks, and what would be, or nothing.

    All wait for the rank with most tasks, as the outer step goes in lockstep.
    """
    most = -(-num_tasks // ranks)
    used = num_tasks / (most * ranks)
    if used > WORTH_SAYING:
        return ""
    divisors = [number for number in range(1, num_tasks + 1) if num_tasks % number == 0]
    near = [max(number for number in divisors if number <= ranks)]
    near += [number for number in divisors if number > ranks][:1]
    return (
        f"{num_tasks} tasks on {ranks} ranks: ranks are idle for {100 * (1 - used):.0f} % of the "
        f"outer step, which divides no task; meta_batch_size={most * ranks}, or "
        f"{' or '.join(map(str, near))} ranks, would be even"
    )


COUNTS = ("ranks", "agents", "observers", "cores", "gpus")
BUSY = ("principal", "agents", "observers")
NEEDED = (
    *COUNTS,
    *("principal_busy", "agents_busy", "observers_busy"),
    *("iteration_seconds", "sampling_seconds", "update_seconds"),
)


def _splits(ranks: int, gpus: int) -> Iterator[Split]:
    """Yield the splits to choose from; those that compose roles are left out but for two ranks."""
    if not gpus:
        yield Split(1, ranks, team=True)
    for agents in range(1, (ranks - 1) // 2 + 1 if not gpus else min(gpus, (ranks - 1) // 2) + 1):
        yield Split(agents, ranks - 1 - agents, team=False)
    if ranks == 2:
        yield Split(1, 1, team=False)
