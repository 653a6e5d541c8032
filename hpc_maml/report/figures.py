"""The pictures of a report, one function each."""

import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from hpc_maml.algorithms.algorithm import Metric
from hpc_maml.envs import make
from hpc_maml.envs.batched import TaskVectorEnv
from hpc_maml.errors import printable
from hpc_maml.names import UntrustedError, is_ones_own
from hpc_maml.report.experiments import Environment, Experiment, RunData, declared, kinds
from hpc_maml.report.phases import AXIS, FIRST, GAIN, UPDATES, each, ends, ends_by_index
from hpc_maml.report.statistics import (
    FEW_SEEDS,
    Band,
    class_success,
    metric,
    optima,
    over_seeds_or_tasks,
    phase_returns_of_runs,
    policies,
    returns,
    seed_means,
    success,
    test_returns_of_runs,
    tests_on_the_way,
    training_class_success,
)
from hpc_maml.storage.meta_tests import RUN

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
    "axes.prop_cycle": mpl.cycler(color=PALETTE),
    "legend.frameon": False,
    "lines.linewidth": 1.7,
    "svg.hashsalt": "hpc_maml",  # the same picture gives the same file
    "text.parse_math": False,  # a $ in the name of a folder is a $
}
STYLES = ("-", "--", ":", "-.")
GREYS = ("0.35", "0.55", "0.7")
WHISKERS = (
    "with its 95 % confidence interval: over the tasks of a single run, or over seeds; of fewer "
    f"than {FEW_SEEDS} seeds, with a dash for each"
)
SHOWN_TASKS, SHOWN_EPISODES = 6, 2
COLUMNS = 3  # of small pictures in a figure


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
    """Return the content of a picture's file, ``svg``, ``png`` or ``pdf``."""
    content = BytesIO()
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        # of letters that the font lacks: they are boxes in the picture, and stand on the page
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        for text in picture.figure.findobj(Text):
            lines = text.get_text().split("\n")  # type: ignore[attr-defined] # of a Text
            text.set_text("\n".join(map(printable, lines)))  # type: ignore[attr-defined]
        dates = {"svg": "Date", "pdf": "CreationDate"}  # the same picture gives the same file
        metadata = {dates[kind]: None} if kind in dates else None
        picture.figure.savefig(content, format=kind, dpi=160, metadata=metadata)
    picture.figure.set_layout_engine(None)  # it is found now, which takes as long as to draw
    return content.getvalue()


def learning_curves(experiments: Sequence[Experiment]) -> Picture:
    """Draw the returns of the first and the last phase, and what lies between them."""
    figure, (left, right) = _panels(2, widths=(1.6, 1))
    before, after = ends(kinds(experiments))
    for experiment, colour in _coloured(experiments):
        iterations = np.arange(1, experiment.iterations + 1)
        of_runs = np.broadcast_to(iterations, (len(experiment.runs), experiment.iterations))
        _curves(left, experiment, of_runs, colour, one=len(experiments) == 1)
        gain = metric(experiment, "post_update_return_mean") - metric(
            experiment, "pre_update_return_mean"
        )
        right.plot(iterations, gain.mean(0), color=colour)
        if len(gain) > 1:
            for values in gain:
                right.plot(iterations, values, color=colour, alpha=0.35, linewidth=0.7)
    right.axhline(0, color="0.5", linewidth=0.8)
    _returns_axis(left, experiments)
    _iterations(left)
    _iterations(right)
    right.set_ylabel("difference of returns [reward]")
    left.set_title("Return of an episode")
    found = kinds(experiments)
    right.set_title(GAIN[found[0]] if len(found) == 1 else "Gain within a task")
    _legend(figure, experiments)
    return Picture(
        "learning_curves",
        "Learning curves",
        f"Undiscounted return of an episode, {before} (dashed) and {after}. "
        + _bands(experiments, after),
        figure,
    )


def sample_efficiency(experiments: Sequence[Experiment]) -> Picture:
    """Draw the returns of the first and the last phase by environment steps."""
    figure, (axis,) = _panels(1, widths=(1,), width=6.5)
    _, after = ends(kinds(experiments))
    for experiment, colour in _coloured(experiments):
        steps = metric(experiment, "environment_steps").cumsum(1)
        _curves(axis, experiment, steps, colour, one=len(experiments) == 1)
    _returns_axis(axis, experiments)
    axis.set_xlabel("environment steps")
    axis.ticklabel_format(axis="x", scilimits=(-3, 5))
    axis.margins(x=0.01)
    _legend(figure, experiments)
    return Picture(
        "sample_efficiency",
        "Return by environment steps",
        "The same returns by the environment steps of all tasks and phases so far. "
        + _bands(experiments, after),
        figure,
    )


def _curves(axis: Axes, experiment: Experiment, x: np.ndarray, colour: Any, *, one: bool) -> None:
    """Draw the returns of the first and the last phase; of few seeds each, of many a band.

    Those of a run by its ``x``, ``[runs, iterations]``, and the middle by their mean.
    """
    middle = x.mean(0)
    for phase, style, only in (("pre_update", "--", BEFORE), ("post_update", "-", AFTER)):
        band = returns(experiment, phase)
        shade = only if one else colour
        axis.plot(middle, band.middle, color=shade, linestyle=style)
        if not (one or phase == "post_update"):
            continue
        if 1 < len(experiment.runs) < FEW_SEEDS:
            for own, values in zip(x, metric(experiment, f"{phase}_return_mean"), strict=True):
                axis.plot(own, values, style, color=shade, alpha=0.4, linewidth=0.7)
        else:
            axis.fill_between(middle, band.low, band.high, color=shade, alpha=0.18, linewidth=0)


def _returns_axis(axis: Axes, experiments: Sequence[Experiment]) -> None:
    """Name the axis of returns, and say which lines are of which phase."""
    before, after = ends(kinds(experiments))
    colours = (BEFORE, AFTER) if len(experiments) == 1 else ("0.3", "0.3")
    lines = [
        Line2D([], [], color=colours[0], linestyle="--", label=before),
        Line2D([], [], color=colours[1], label=after),
    ]
    axis.legend(handles=lines, loc="best", fontsize=8)
    # The first iterations of few seeds have bands so wide that nothing else would be seen.
    axis.set_ylim(*_reach(experiments))
    axis.set_ylabel("return of an episode [reward]")


def adaptation_curve(experiments: Sequence[Experiment]) -> Picture:
    """Draw the return of each phase, a panel for each kind of phases."""
    found = kinds(experiments)
    width = 6.5 if len(found) == 1 else 9.6
    figure, axes = _panels(len(found), widths=(1,) * len(found), width=width)
    for axis, kind in zip(axes, found, strict=True):
        shown = [each for each in _coloured(experiments) if each[0].phase == kind]
        for (experiment, colour), aside in zip(shown, _asides(len(shown)), strict=True):
            _whiskers(axis, kind, phase_returns_of_runs(experiment), aside, color=colour)
        _phases(axis, kind)
        axis.set_title("Tasks of training")
    _same_height(axes)
    _legend(figure, experiments)
    words = each(found)
    return Picture(
        "adaptation_curve",
        f"Return {words}",
        f"Mean return {words}, in the last tenth of the iterations, {WHISKERS}.",
        figure,
    )


def meta_test(experiments: Sequence[Experiment]) -> Picture | None:
    """Draw the returns on unseen tasks: of all policies at the end, of the run on its way.

    A row for each kind of phases.
    """
    tested = [each for each in _coloured(experiments) if policies(each[0])]
    if not tested:
        return None
    found = kinds(experiment for experiment, _ in tested)
    way = any(len(tests_on_the_way(experiment)) > 1 for experiment, _ in tested)
    number = 1 + way
    figure, axes = _panels(number, rows=len(found), widths=(1,) * number, width=4 + 4.5 * way)
    for row, kind in enumerate(found):
        after, *during = axes[row * number : (row + 1) * number]
        shown = [each for each in tested if each[0].phase == kind]
        _after_training(after, kind, shown, alone=len(tested) == 1)
        for axis in during:
            _during_training(axis, kind, shown)
    _same_height(axes)
    _legend(figure, experiments)
    return Picture(
        "meta_test",
        "Meta-test: return on unseen tasks",
        f"Mean return {each(found)} on tasks that training never saw, {WHISKERS}.",
        figure,
    )


Coloured = Sequence[tuple[Experiment, Any]]


def _after_training(axis: Axes, kind: str, shown: Coloured, *, alone: bool) -> None:
    for (experiment, colour), aside in zip(shown, _asides(len(shown)), strict=True):
        # The run has the colour that it has everywhere; beside it stand the policies it is tested
        # with, where no other run is.
        for number, policy in enumerate(policies(experiment) if alone else [RUN]):
            look = {"color": colour}
            if alone:
                grey = {} if policy == RUN else {"color": GREYS[(number - 1) % len(GREYS)]}
                look |= grey | {"linestyle": STYLES[min(number, 3)], "label": policy}
            _whiskers(axis, kind, test_returns_of_runs(experiment, policy), aside, **look)
    optimal = [
        axis.axhline(height, color="0.4", linestyle=style, linewidth=1, label=name)
        for (name, height), style in zip(optima(shown[0][0]).items(), STYLES[1:], strict=False)
    ]
    _phases(axis, kind)
    axis.set_title("After training")
    handles = [*(axis.containers if alone else ()), *optimal]
    if handles:
        axis.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, -0.17), fontsize=8)


def _during_training(axis: Axes, kind: str, shown: Coloured) -> None:
    """Draw the first, the last, and of updates the second phase, by iteration."""
    labels: dict[str, set[int]] = {}  # by line style, the phases drawn
    for experiment, colour in shown:
        tests = tests_on_the_way(experiment)
        if not tests:  # its runs were not tested after the same iterations
            continue
        phases = len(next(iter(tests.values())).middle)
        chosen = sorted({0, min(1, phases - 1) if kind == UPDATES else 0, phases - 1})
        for phase, style in zip(chosen, ("--", "-", ":"), strict=False):
            curve = [band.middle[phase] for band in tests.values()]
            axis.plot(list(tests), curve, style, color=colour, marker=".")
            labels.setdefault(style, set()).add(FIRST[kind] + phase)
    _iterations(axis)
    axis.set_ylabel("return of an episode [reward]")
    axis.set_title("During training")
    lines = [
        Line2D(
            [],
            [],
            color="0.3",
            linestyle=style,
            label=str(*numbers) if len(numbers) == 1 else "last",
        )
        for style, numbers in labels.items()
    ]
    axis.legend(handles=lines, title=AXIS[kind], loc="best", fontsize=8, title_fontsize=8)


def successes(experiments: Sequence[Experiment]) -> Picture | None:
    """Draw the share of successful episodes: in training, and by class at the end."""
    known = [each for each in _coloured(experiments) if success(each[0], "post_update")]
    if not known:
        return None
    ended = {
        "Training, in the end": [
            (training_class_success(experiment), colour) for experiment, colour in known
        ],
        "Meta-test, last phase": [
            (class_success(experiment), colour) for experiment, colour in known
        ],
    }
    shown = {title: found for title, found in ended.items() if any(each for each, _ in found)}
    most = max((len(each) for found in shown.values() for each, _ in found), default=0)
    number = 1 + len(shown)
    figure, axes = _panels(
        number,
        widths=(1.3, 1, 1)[:number],
        width=4 + 3.2 * len(shown),
        height=max(3.4, 1 + 0.22 * most),
    )
    before, after = ends(kinds(experiment for experiment, _ in known))
    for experiment, colour in known:
        iterations = np.arange(1, experiment.iterations + 1)
        for phase, style in (("pre_update", "--"), ("post_update", "-")):
            band = success(experiment, phase)
            if band is None:
                continue
            axes[0].plot(iterations, 100 * band.middle, style, color=colour)
            if phase == "post_update":
                edges = (100 * edge.clip(0, 1) for edge in (band.low, band.high))
                axes[0].fill_between(iterations, *edges, color=colour, alpha=0.18, linewidth=0)
    _iterations(axes[0])
    axes[0].set_ylabel("successful episodes [%]")
    axes[0].set_title("Training")
    lines = [
        Line2D([], [], color="0.3", linestyle=style, label=label)
        for style, label in (("--", before), ("-", after))
    ]
    axes[0].legend(handles=lines, loc="best", fontsize=8)
    for axis, (title, found) in zip(axes[1:], shown.items(), strict=True):
        _by_class(axis, found)
        axis.set_title(title)
    _legend(figure, experiments)
    return Picture(
        "success",
        "Success",
        f"Share of the episodes that succeeded at any of their steps, {before} (dashed) and "
        f"{after}, with the 95 % confidence interval of its mean: over the tasks of a run (of a "
        "class in training: over iterations), over seeds where there are several; of fewer than "
        f"{FEW_SEEDS} seeds, from the lowest to the highest.",
        figure,
    )


def _by_class(axis: Axes, found: Sequence[tuple[Mapping[str, Band], Any]]) -> None:
    """Draw shares of successful episodes, a row for each class."""
    names = list(dict.fromkeys(name for bands, _ in found for name in bands))
    for (bands, colour), aside in zip(found, _asides(len(found)), strict=True):
        rows = np.array([names.index(name) for name in bands]) + 3 * aside
        middle = np.array([100 * band.middle[0] for band in bands.values()])
        low, high = (
            np.nan_to_num([100 * abs(edge - band.middle)[0] for band, edge in edges])
            for edges in (
                [(band, band.low) for band in bands.values()],
                [(band, band.high) for band in bands.values()],
            )
        )
        look = {"color": colour, "marker": "o", "markersize": 4, "linestyle": "", "capsize": 3}
        axis.errorbar(middle, rows, xerr=[low, high], **look)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(-3, 103)
    axis.set_xlabel("successful episodes [%]")


def task_returns(experiments: Sequence[Experiment]) -> Picture:
    """Draw how the returns of the tasks are spread, at the end."""
    columns = min(COLUMNS, len(experiments))
    rows = -(-len(experiments) // columns)
    figure, axes = _panels(
        columns, rows=rows, widths=(1,) * columns, height=3.4 if rows == 1 else 2.6, share=True
    )
    words = ends(kinds(experiments))
    for axis, experiment in zip(axes, experiments, strict=False):
        phases = [
            np.concatenate(
                [run.per_task[f"{phase}_return"][run.final].ravel() for run in experiment.even_runs]
            )
            for phase in ("pre_update", "post_update")
        ]
        finite = [values[np.isfinite(values)] for values in phases]
        edges = np.histogram_bin_edges(np.concatenate(finite), 30)
        for values, colour, label in zip(finite, (BEFORE, AFTER), words, strict=True):
            weights = np.full(len(values), 100 / max(1, len(values)))
            axis.hist(values, edges, weights=weights, color=colour, alpha=0.45, label=label)
            axis.hist(values, edges, weights=weights, color=colour, histtype="step")
            if len(values):
                axis.axvline(values.mean(), color=colour, linestyle="--", linewidth=1)
        axis.set(xlabel="mean return of a task [reward]", ylabel="tasks [%]")
        axis.set_title(experiment.label if len(experiments) > 1 else "Returns of tasks")
    _hide_rest(axes, len(experiments), columns)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return Picture(
        "task_returns",
        "Returns of the tasks",
        "Each task of the last tenth of the iterations counts once in each of the two phases. "
        "Dashed: the means.",
        figure,
    )


def outer_step(experiments: Sequence[Experiment]) -> Picture | None:
    """Draw every metric that the algorithms declare, of the runs that have it."""
    runs = [run for each in experiments for run in each.runs]
    metrics = declared(runs)
    if not metrics:
        return None
    columns = min(COLUMNS, len(metrics))
    rows = -(-len(metrics) // columns)
    figure, axes = _panels(columns, rows=rows, widths=(1,) * columns, width=9.6, height=2.5)
    limits: set[str] = set()
    for axis, (name, about) in zip(axes, metrics.items(), strict=False):
        limits |= _declared(axis, experiments, name, about)
    _hide_rest(axes, len(metrics), columns)
    rejected = sum(int((run.column("accepted") == 0).sum()) for run in runs)
    look = {"color": "0.3"}
    marks = [Line2D([], [], **look, linestyle="--", label=f"limit: {', '.join(sorted(limits))}")]
    marks = marks if limits else []
    if rejected:
        words = f"rejected update ({rejected} of {sum(len(run.metrics) for run in runs)})"
        marks.append(Line2D([], [], **look, linestyle="", marker="x", label=words))
    if marks:
        figure.legend(handles=marks, loc="outside upper right", ncols=2, fontsize=8)
    _legend(figure, experiments)
    return Picture(
        "outer_step",
        "Outer step",
        "What the algorithm records of its outer steps, a line for each run. Rejected updates are "
        f"left out of the lines and marked by a cross; there {_are(rejected)}.",
        figure,
    )


def _declared(axis: Axes, experiments: Sequence[Experiment], name: str, about: Metric) -> set[str]:
    """Draw a declared metric; return the names of the settings that are drawn as its limits."""
    limits = set()
    whole = True
    for experiment, colour in _coloured(experiments):
        for run in experiment.runs:
            if name not in run.declared or name not in run.metrics:
                continue
            iterations, values = run.metrics.index.to_numpy(), run.column(name)
            whole = whole and np.issubdtype(values.dtype, np.integer)
            rejected = run.column("accepted") == 0
            values = np.where(rejected, np.nan, values)
            marker = "." if np.isfinite(values).sum() == 1 else None
            look = {"color": colour, "linewidth": 1.1, "alpha": 0.8}
            axis.plot(iterations, values, marker=marker, **look)
            if rejected.any():
                bottom = {"transform": axis.get_xaxis_transform(), "clip_on": False}
                axis.plot(iterations[rejected], 0 * iterations[rejected], "x", **bottom, **look)
            limit = run.declared[name].limit
            height = _number(run, limit)
            if height is not None:
                axis.axhline(height, color=colour, linestyle="--", linewidth=1)
                limits.add(limit)
    _iterations(axis)
    axis.ticklabel_format(axis="y", useOffset=False, scilimits=(-3, 4))
    if whole:
        axis.yaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    axis.set_ylabel("" if about.unit == "1" else f"[{about.unit}]")
    axis.set_title(name.replace("_", " "), pad=11 + 9 * len(lines := _wrapped(about.description)))
    axis.annotate(
        "\n".join(lines),
        (0.5, 1),
        xytext=(0, 8),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=7,
        color="0.4",
    )
    return limits


def _number(run: RunData, setting: str) -> float | None:
    """Return a setting of the algorithm that is a number."""
    section = run.config.get("algorithm")
    value = section.get(setting) if setting and isinstance(section, dict) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 48)


def _are(number: int) -> str:
    return "are none" if not number else "is 1" if number == 1 else f"are {number}"


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
    """Draw episodes as the environment pictures them, where some are archived."""
    runs = [run for each in experiments for run in each.runs]
    archived = next(((run, keys) for run in runs if (keys := list(run.run.rollouts))), None)
    if archived is None:
        return None
    run, keys = archived
    env = _environment(run)
    if env is None or not env.picture:
        return None
    iteration = keys[-1][0]
    keys = [key for key in keys if key[0] == iteration][:SHOWN_TASKS]
    shown = [(f"task {key[1]}", run.run.rollouts[key]) for key in keys]
    panels = [(title, each.task, each.observations, each.lengths) for title, each in shown]
    return Picture(
        "trajectories",
        "Trajectories",
        f"The first {SHOWN_EPISODES} {'episodes' if run.phase == UPDATES else 'trials'} of the "
        f"first tasks of iteration {iteration} of {run.name}: "
        f"{' and '.join(ends_by_index(run.phase, len(panels[0][3])).values())}.",
        episodes_of_tasks(env, panels, run.phase),
    )


def _environment(run: RunData) -> TaskVectorEnv | None:
    """Return the environment of a run, if it can be made here."""
    env = run.config["env"]
    if is_ones_own(env["name"]) and not run.trusted:
        reason = UntrustedError(run.name, {"env.name": env["name"]})
        warnings.warn(f"There is no picture of trajectories: {reason}", stacklevel=1)
        return None
    try:
        return make(env["name"], num_tasks=1, episodes_per_task=1, **env["kwargs"])
    except (ValueError, TypeError):
        return None


def episodes_of_tasks(
    env: TaskVectorEnv,
    panels: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]],
    kind: str,
) -> Figure:
    """Let an environment draw the first episodes of the first and the last phase of some tasks.

    A panel is a title, a task ``[task_dim]``, observations ``[K, T, B, obs_dim]`` and lengths
    ``[K, B]``; ``kind`` is that of the phases.
    """
    with mpl.rc_context(STYLE):
        columns = min(COLUMNS, len(panels))
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(8, 2.8 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axis, (title, task, observations, lengths) in zip(grid, panels, strict=False):
            episodes = range(min(SHOWN_EPISODES, lengths.shape[1]))
            phases = {
                words: [observations[phase, : lengths[phase, each], each] for each in episodes]
                for phase, words in ends_by_index(kind, len(lengths)).items()
            }
            env.picture(axis, task, phases)
            axis.set_title(title)
            axis.label_outer()
        _hide_rest(grid, len(panels), columns)
        if grid[0].get_aspect() == 1:  # equal scales, and room for markers
            bounds = np.array([axis.dataLim.extents for axis in grid[: len(panels)]])
            low, high = bounds[:, :2].min(0), bounds[:, 2:].max(0)
            left, right = (low + high) / 2 + np.outer((-0.57, 0.57), (high - low).max())
            grid[0].set(xlim=(left[0], right[0]), ylim=(left[1], right[1]))
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


DRAWINGS: tuple[Callable[[Sequence[Experiment]], Picture | None], ...] = (
    learning_curves,
    sample_efficiency,
    adaptation_curve,
    meta_test,
    successes,
    task_returns,
    trajectories,
    outer_step,
    time_use,
    speed,
)


def _panels(
    columns: int,
    *,
    rows: int = 1,
    widths: Sequence[float],
    width: float = 8,
    height: float = 3.4,
    share: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its axes, row by row; ``height`` is that of a row."""
    figure = Figure(figsize=(max(width, 2.6 * columns), rows * height), layout="constrained")
    axes = figure.subplots(
        rows, columns, squeeze=False, width_ratios=widths, sharex=share, sharey=share
    )
    return figure, list(axes.ravel())


def _hide_rest(axes: Sequence[Axes], shown: int, columns: int) -> None:
    """Hide the axes of a grid that are left over; those above them get their labels."""
    for number, axis in enumerate(axes):
        if number >= shown:
            axis.set_visible(False)
        elif number + columns >= shown:
            axis.tick_params(labelbottom=True)


def _same_height(axes: Sequence[Axes]) -> None:
    """Give axes the same limits, so that returns can be compared."""
    low, high = zip(*(axis.get_ylim() for axis in axes), strict=True)
    for axis in axes:
        axis.set_ylim(min(low), max(high))


def _asides(number: int) -> list[float]:
    """Return by how much each of several curves stands beside its phase."""
    return [0.04 * (place - (number - 1) / 2) for place in range(number)]


def _coloured(experiments: Sequence[Experiment]) -> list[tuple[Experiment, Any]]:
    if len(experiments) <= len(PALETTE):
        return list(zip(experiments, PALETTE, strict=False))
    # without the yellow end, which is too light on white
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(experiments)))
    return list(zip(experiments, colours, strict=True))


def _legend(figure: Figure, experiments: Sequence[Experiment]) -> None:
    """Say below the axes which experiment has which colour, where there are several.

    Matplotlib leaves labels out that begin with an underscore.
    """
    if len(experiments) < 2:
        return
    # so that a line of letters of this size is no wider than the figure
    letters = int(15 * figure.get_figwidth())
    keys = ["\n".join(textwrap.wrap(each.key, letters)) for each in experiments]
    lines = [
        Line2D([], [], color=colour, label=f" {key}" if key.startswith("_") else key)
        for (_, colour), key in zip(_coloured(experiments), keys, strict=True)
    ]
    columns = 4 if all(each.key == each.label for each in experiments) else 1
    rows = sum(1 + key.count("\n") for key in keys) if columns == 1 else -(-len(lines) // columns)
    figure.set_figheight(figure.get_figheight() + 0.22 * rows)
    figure.legend(handles=lines, loc="outside lower center", ncols=columns, fontsize=8)


def _whiskers(
    axis: Axes, kind: str, per_run: Sequence[np.ndarray], aside: float, **look: Any
) -> None:
    """Draw the mean of the returns ``[n, phases]`` of runs, with its interval or a few seeds."""
    band = over_seeds_or_tasks(per_run)
    few = 1 < len(per_run) < FEW_SEEDS
    half = None if few else np.nan_to_num(band.high - band.middle)
    phases = FIRST[kind] + np.arange(len(band.middle)) + aside
    axis.errorbar(phases, band.middle, half, marker="o", markersize=4, capsize=3, **look)
    for values in seed_means(per_run) if few else ():
        axis.plot(phases, values, "_", color=look["color"], markersize=9, alpha=0.6)


def _phases(axis: Axes, kind: str) -> None:
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, FIRST[kind] - 0.3), max(high, FIRST[kind] + 0.3))
    axis.set_xlabel(AXIS[kind])
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


def _bands(experiments: Sequence[Experiment], after: str) -> str:
    numbers = [len(experiment.runs) for experiment in experiments]
    kinds_of_bands = {
        "of a single run, mean over the tasks of the iteration with the middle half of the tasks "
        "as the band": 1 in numbers,
        f"of fewer than {FEW_SEEDS} seeds, their mean with a thin line for each": any(
            1 < number < FEW_SEEDS for number in numbers
        ),
        "of more seeds, their mean with its 95 % confidence interval": max(numbers) >= FEW_SEEDS,
    }
    words = "; ".join(each for each, holds in kinds_of_bands.items() if holds)
    only = f" ({after})" if len(numbers) > 1 else ""
    return f"Lines and bands{only}: {words}."
