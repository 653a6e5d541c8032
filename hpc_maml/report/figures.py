"""The pictures of a report, one function each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hpc_maml.storage.meta_tests import RUN
from hpc_maml.report.experiments import Environment, Experiment
from hpc_maml.report.statistics import (
    Band,
    metric,
    optima,
    policies,
    returns,
    returns_after_updates,
    test_returns,
    tests_on_the_way,
)

# Okabe and Ito's colours, told apart by everyone; more experiments than these are sampled anew.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BEFORE, AFTER, THIRD = PALETTE[0], PALETTE[1], PALETTE[2]
STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "svg.hashsalt": "hpc_maml",  # the same picture gives the same file
}
STYLES = ("-", "--", ":", "-.")
SHOWN_TASKS, SHOWN_EPISODES = 6, 2


@dataclass(frozen=True)
class Picture:
    """A figure, and what stands under it."""

    name: str  # of its files
    title: str
    caption: str
    figure: Figure


def pictures(environment: Environment) -> list[Picture]:
    """Draw everything there is to see of the experiments of an environment."""
    with mpl.rc_context(STYLE):
        drawn = [draw(environment.experiments) for draw in DRAWINGS]
    return [picture for picture in drawn if picture]


def render(picture: Picture, kind: str) -> bytes:
    """Return the content of a picture's file, ``svg`` or ``png``."""
    content = BytesIO()
    with mpl.rc_context(STYLE):
        metadata = {"Date": None} if kind == "svg" else None
        picture.figure.savefig(content, format=kind, dpi=160, metadata=metadata)
    return content.getvalue()


def learning_curves(experiments: Sequence[Experiment]) -> Picture:
    """Draw the returns before and after adaptation, and what adaptation gains."""
    figure, (left, right) = _panels(2, widths=(1.6, 1))
    one = len(experiments) == 1
    for experiment, colour in _coloured(experiments):
        iterations = np.arange(1, experiment.iterations + 1)
        for phase, style, only in (("pre_update", "--", BEFORE), ("post_update", "-", AFTER)):
            band = returns(experiment, phase)
            shade = only if one else colour
            left.plot(iterations, band.middle, color=shade, linestyle=style)
            if one or phase == "post_update":
                left.fill_between(
                    iterations, band.low, band.high, color=shade, alpha=0.18, linewidth=0
                )
        gain = metric(experiment, "post_update_return_mean") - metric(
            experiment, "pre_update_return_mean"
        )
        right.plot(iterations, gain.mean(0), color=colour)
        if len(gain) > 1:
            for each in gain:
                right.plot(iterations, each, color=colour, alpha=0.35, linewidth=0.7)
    right.axhline(0, color="0.5", linewidth=0.8)
    # The first iterations of few seeds have bands so wide that nothing else would be seen.
    left.set_ylim(*_reach(experiments))
    _iterations(left)
    _iterations(right)
    left.set_ylabel("return of an episode [reward]")
    right.set_ylabel("return after minus before [reward]")
    left.set_title("Return before and after adaptation")
    right.set_title("Gain by adaptation")
    colours = (BEFORE, AFTER) if one else ("0.3", "0.3")
    lines = [
        Line2D([], [], color=colours[0], linestyle="--", label="before"),
        Line2D([], [], color=colours[1], label="after"),
    ]
    left.legend(handles=lines, loc="best")
    _legend(figure, experiments)
    return Picture(
        "learning_curves",
        "Learning curves",
        "Undiscounted return of an episode, before and after adaptation to the task. "
        + _bands(experiments),
        figure,
    )


def adaptation_curve(experiments: Sequence[Experiment]) -> Picture:
    """Draw the return after 0, 1, ... updates."""
    figure, (axis,) = _panels(1, widths=(1,), width=6.5)
    for number, (experiment, colour) in enumerate(_coloured(experiments)):
        aside = 0.04 * (number - (len(experiments) - 1) / 2)
        _whiskers(axis, returns_after_updates(experiment), aside, color=colour)
    _updates(axis)
    axis.set_title("Tasks of training")
    _legend(figure, experiments)
    return Picture(
        "adaptation_curve",
        "Return after 0, 1, ... updates",
        "Mean return after each inner step in the last tenth of the iterations, with its 95 % "
        "confidence interval: over the tasks of a run, over seeds where there are several.",
        figure,
    )


def meta_test(experiments: Sequence[Experiment]) -> Picture | None:
    """Draw the returns on unseen tasks: of all policies at the end, of the run on its way."""
    tested = [each for each in _coloured(experiments) if policies(each[0])]
    if not tested:
        return None
    on_the_way = [each for each in tested if len(tests_on_the_way(each[0])) > 1]
    number = 1 + bool(on_the_way)
    figure, axes = _panels(number, widths=(1,) * number, width=6.5)
    alone = len(tested) == 1
    for place, (experiment, colour) in enumerate(tested):
        aside = 0.04 * (place - (len(tested) - 1) / 2)
        shown = policies(experiment) if alone else [RUN]
        for number, policy in enumerate(shown):
            look = {"color": PALETTE[number % len(PALETTE)], "linestyle": STYLES[min(number, 3)]}
            look = look | {"label": policy} if alone else {"color": colour}
            _whiskers(axes[0], test_returns(experiment, policy), aside, **look)
    for (name, height), style in zip(optima(tested[0][0]).items(), STYLES[1:], strict=False):
        axes[0].axhline(height, color="0.4", linestyle=style, linewidth=1, label=name)
    _updates(axes[0])
    axes[0].set_title("After training")
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(loc="upper left", bbox_to_anchor=(0, -0.17), fontsize=8)
    for experiment, colour in on_the_way:
        tests = tests_on_the_way(experiment)
        iterations = list(tests)
        last = len(next(iter(tests.values())).middle) - 1
        for updates, style in {0: "--", 1: "-", last: ":"}.items():
            curve = [band.middle[updates] for band in tests.values()]
            axes[1].plot(iterations, curve, style, color=colour, marker=".")
    if on_the_way:
        _iterations(axes[1])
        axes[1].set_ylabel("return of an episode [reward]")
        axes[1].set_title("During training")
        lines = [
            Line2D([], [], color="0.3", linestyle=style, label=str(updates))
            for updates, style in {0: "--", 1: "-", last: ":"}.items()
        ]
        axes[1].legend(handles=lines, title="updates", loc="best", fontsize=8)
    _legend(figure, experiments)
    return Picture(
        "meta_test",
        "Meta-test: return on unseen tasks",
        "Mean return after each update on tasks that training never saw, with its 95 % confidence "
        "interval: over the tasks of a run, over seeds where several were tested.",
        figure,
    )


def task_returns(experiments: Sequence[Experiment]) -> Picture:
    """Draw how the returns of the tasks are spread, at the end."""
    figure, axes = _panels(len(experiments), widths=(1,) * len(experiments), share=True)
    for axis, experiment in zip(axes, experiments, strict=True):
        phases = [
            np.concatenate(
                [run.per_task[f"{phase}_return"][run.final].ravel() for run in experiment.runs]
            )
            for phase in ("pre_update", "post_update")
        ]
        finite = [values[np.isfinite(values)] for values in phases]
        edges = np.histogram_bin_edges(np.concatenate(finite), 30)
        for values, colour, words in zip(finite, (BEFORE, AFTER), ("before", "after"), strict=True):
            weights = np.full(len(values), 100 / max(1, len(values)))
            axis.hist(values, edges, weights=weights, color=colour, alpha=0.45, label=words)
            axis.hist(values, edges, weights=weights, color=colour, histtype="step")
            if len(values):
                axis.axvline(values.mean(), color=colour, linestyle="--", linewidth=1)
        axis.set_xlabel("mean return of a task [reward]")
        axis.set_title(experiment.label if len(experiments) > 1 else "Returns of tasks")
    axes[0].set_ylabel("tasks [%]")
    axes[0].legend(loc="upper left")
    return Picture(
        "task_returns",
        "Returns of the tasks",
        "Each task of the last tenth of the iterations counts once, before and after adaptation. "
        "Dashed: the means.",
        figure,
    )


def trust_region(experiments: Sequence[Experiment]) -> Picture:
    """Draw how far the steps went, how long the line search took, and what was rejected."""
    figure, (left, middle, right) = _panels(3, widths=(1.2, 1, 1), width=9.6)
    for experiment, colour in _coloured(experiments):
        for run in experiment.runs:
            table = run.metrics
            accepted = table["accepted"] == 1
            thin = {"color": colour, "linewidth": 1.1, "alpha": 0.8}
            left.plot(table.index[accepted], table["kl_after"][accepted], **thin)
            if not accepted.all():
                rejected = table.index[~accepted]
                left.plot(rejected, 0 * rejected, "x", color=colour, clip_on=False)
            middle.plot(table.index, table["line_search_steps"], drawstyle="steps-mid", **thin)
            right.plot(table.index, table["rejected_updates"], drawstyle="steps-post", **thin)
        left.axhline(
            experiment.runs[0].config["trpo"]["max_kl"], color=colour, linestyle="--", linewidth=1
        )
    for axis in (left, middle, right):
        _iterations(axis)
        axis.set_ylim(bottom=0)
    for axis in (middle, right):
        axis.yaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_ylim(top=max(axis.get_ylim()[1], 1))
    left.set_ylabel("KL, old to new meta-policy [nat]")
    left.set_title("Step taken")
    middle.set_ylabel("candidates judged")
    middle.set_title("Line search")
    right.set_ylabel("updates rejected so far")
    runs = [run for each in experiments for run in each.runs]
    rejected = sum(int((run.metrics["accepted"] == 0).sum()) for run in runs)
    right.set_title(f"Rejected updates: {rejected or 'none'}")
    limit = Line2D([], [], color="0.3", linestyle="--", label="max_kl")
    left.legend(handles=[limit], loc="lower right")
    _legend(figure, experiments)
    return Picture(
        "trust_region",
        "Outer step",
        "Mean KL divergence after adaptation of the updates taken, a line for each run; a cross "
        "marks a rejected update. The line search shortens the step until KL and loss allow it.",
        figure,
    )


def time_use(experiments: Sequence[Experiment]) -> Picture:
    """Draw where the time of an iteration went, and how busy each role was."""
    names = [experiment.label for experiment in experiments]
    height = 1.5 + 0.45 * len(experiments)
    figure, (left, right) = _panels(2, widths=(1.3, 1), height=max(2.6, height))
    rows = np.arange(len(experiments))
    start = np.zeros(len(experiments))
    for words, colour, seconds in (
        ("sampling", PALETTE[0], _medians(experiments, "sampling_seconds")),
        ("outer step", PALETTE[1], _medians(experiments, "update_seconds")),
        ("other", "0.7", _medians(experiments, "iteration_seconds")),
    ):
        seconds = (seconds - start).clip(0) if words == "other" else seconds
        left.barh(rows, seconds, 0.6, left=start, color=colour, label=words)
        start = start + seconds
    for number, role in enumerate(("principal", "agents", "observers")):
        busy = 100 * _medians(experiments, f"{role}_busy")
        places = rows + (number - 1) * 0.25
        bars = right.barh(places, busy, 0.22, color=PALETTE[2 + number], label=role)
        right.bar_label(bars, fmt="%.0f %%", padding=2, fontsize=8)
    for axis in (left, right):
        axis.set_yticks(rows, names)
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
    right.tick_params(left=False, labelleft=False)
    right.set_xlim(0, 118)
    right.set_xticks(range(0, 101, 25))
    left.set_xlabel("seconds of an iteration, median")
    right.set_xlabel("time spent working [%], median")
    left.set_title("Time per phase")
    right.set_title("How busy each role was")
    for axis, place in ((left, "outside lower left"), (right, "outside lower right")):
        figure.legend(*axis.get_legend_handles_labels(), loc=place, ncols=3, fontsize=8)
    return Picture(
        "time_use",
        "Time",
        "Sampling: from the order to the last trajectory batch; outer step: from there to the new "
        "meta-policy. Roles that share a rank can each be busy for only part of the time.",
        figure,
    )


def speed(experiments: Sequence[Experiment]) -> Picture:
    """Draw the environment steps per second."""
    figure, (axis,) = _panels(1, widths=(1,), width=6)
    for experiment, colour in _coloured(experiments):
        for run in experiment.runs:
            rate = run.metrics["environment_steps"] / run.metrics["iteration_seconds"]
            axis.plot(rate.index, rate, color=colour, linewidth=1.1, alpha=0.8)
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter("{x:,.0f}")
    _iterations(axis)
    axis.set_ylabel("environment steps per second")
    axis.set_title("Speed of the whole job")
    _legend(figure, experiments)
    return Picture(
        "speed",
        "Environment steps per second",
        "Steps of all observers together over the time of the whole iteration, outer step "
        "included; a line for each run.",
        figure,
    )


def trajectories(experiments: Sequence[Experiment]) -> Picture | None:
    """Draw paths before and after adaptation, with their goals, where they are archived."""
    runs = [run for each in experiments for run in each.runs]
    if runs[0].config["env"]["name"] != "navigation":
        return None
    archived = next(((run, keys) for run in runs if (keys := list(run.run.rollouts))), None)
    if archived is None:
        return None
    run, keys = archived
    iteration = keys[-1][0]
    keys = [key for key in keys if key[0] == iteration][:SHOWN_TASKS]
    shown = [(f"task {key[1]}", run.run.rollouts[key]) for key in keys]
    figure = paths([(title, each.task, each.observations, each.lengths) for title, each in shown])
    return Picture(
        "trajectories",
        "Trajectories",
        f"The first {SHOWN_EPISODES} episodes of the first tasks of iteration {iteration} of "
        f"{run.name}, before and after adaptation. The goal is not observed.",
        figure,
    )


def paths(panels: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]]) -> Figure:
    """Draw the first paths to some goals before and after adaptation.

    A panel is a title, a goal ``[2]``, observations ``[K, T, B, 2]`` and lengths ``[K, B]``.
    """
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    grid = figure.subplots(2, 3, sharex=True, sharey=True).ravel()
    for axis, (title, goal, observations, lengths) in zip(grid, panels, strict=False):
        for phase, colour, words in ((0, BEFORE, "before"), (len(lengths) - 1, AFTER, "after")):
            for episode in range(min(SHOWN_EPISODES, observations.shape[2])):
                path = observations[phase, : lengths[phase, episode], episode]
                label = words if episode == 0 else None
                axis.plot(*path.T, color=colour, linewidth=1, alpha=0.75, label=label)
        axis.plot(0, 0, "o", color="black", markersize=5, label="start")
        star = {"color": PALETTE[4], "markersize": 15, "markeredgecolor": "black"}
        axis.plot(*goal, "*", **star, label="goal")
        axis.set_aspect("equal")
        axis.set_title(title)
    for axis in grid[len(panels) :]:
        axis.set_visible(False)
    reach = max(abs(bound) for axis in grid[: len(panels)] for bound in axis.dataLim.extents)
    grid[0].set(xlim=(-1.05 * reach, 1.05 * reach), ylim=(-1.05 * reach, 1.05 * reach))
    figure.supxlabel("x", fontsize=9)
    figure.supylabel("y", fontsize=9)
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4)
    return figure


DRAWINGS: tuple[Callable[[Sequence[Experiment]], Picture | None], ...] = (
    learning_curves,
    adaptation_curve,
    meta_test,
    task_returns,
    trajectories,
    trust_region,
    time_use,
    speed,
)


def _panels(
    number: int,
    *,
    widths: Sequence[float],
    width: float = 8,
    height: float = 3.4,
    share: bool = False,
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(max(width, 2.6 * number), height), layout="constrained")
    axes = figure.subplots(
        1, number, squeeze=False, width_ratios=widths, sharex=share, sharey=share
    )
    return figure, list(axes[0])


def _coloured(experiments: Sequence[Experiment]) -> list[tuple[Experiment, Any]]:
    if len(experiments) <= len(PALETTE):
        return list(zip(experiments, PALETTE, strict=False))
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.95, len(experiments)))
    return list(zip(experiments, colours, strict=True))


def _legend(figure: Figure, experiments: Sequence[Experiment]) -> None:
    """Say below the axes which experiment has which colour, where there are several."""
    if len(experiments) < 2:
        return
    lines = [
        Line2D([], [], color=colour, label=each.key) for each, colour in _coloured(experiments)
    ]
    columns = 4 if all(each.key == each.label for each in experiments) else 1
    figure.set_figheight(figure.get_figheight() + 0.22 * -(-len(lines) // columns))
    figure.legend(handles=lines, loc="outside lower center", ncols=columns, fontsize=8)


def _whiskers(axis: Axes, band: Band, aside: float, **look: Any) -> None:
    half = np.nan_to_num(band.high - band.middle)
    updates = np.arange(len(band.middle)) + aside
    axis.errorbar(updates, band.middle, half, marker="o", markersize=4, capsize=3, **look)


def _updates(axis: Axes) -> None:
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("updates")
    axis.set_ylabel("return of an episode [reward]")


def _reach(experiments: Sequence[Experiment]) -> tuple[float, float]:
    """Return limits that hold the mean returns of every run, and the bands of single runs."""
    phases = ("pre_update", "post_update")
    shown = [metric(each, f"{phase}_return_mean") for each in experiments for phase in phases]
    shown += [
        np.stack(returns(each, phase))
        for each in experiments
        for phase in phases
        if len(each.runs) == 1
    ]
    values = np.concatenate([each.ravel() for each in shown])
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    margin = 0.05 * (high - low) or 1.0
    return low - margin, high + margin


def _iterations(axis: Axes) -> None:
    axis.set_xlabel("iteration")
    axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.margins(x=0.01)


def _medians(experiments: Sequence[Experiment], name: str) -> np.ndarray:
    return np.array([np.median(metric(experiment, name)) for experiment in experiments])


def _bands(experiments: Sequence[Experiment]) -> str:
    several = [len(experiment.runs) > 1 for experiment in experiments]
    seeds = "mean over seeds with its 95 % confidence interval"
    tasks = "mean over the tasks of the iteration with the middle half of the tasks as the band"
    words = seeds if all(several) else tasks
    if any(several) and not all(several):
        words = f"{seeds}; of a single run, {tasks}"
    only = " (of the return after adaptation)" if len(several) > 1 else ""
    return f"Lines and bands{only}: {words}."
