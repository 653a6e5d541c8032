"""The page of an experiment: curves, our table beside the published one, verdict, commands."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np

from hpc_maml.errors import InputError
from hpc_maml.reproduce.benchmark import command
from hpc_maml.reproduce.experiment import Experiment, Method
from hpc_maml.reproduce.runs import SUCCESS, WINDOW, PlannedRun, commands, scores
from hpc_maml.run.record import versions
from hpc_maml.storage.atomic_files import write_text, write_whole
from hpc_maml.storage.meta_tests import half_width

VERSIONS = ("hpc_maml", "git_commit", "python", "numpy", "mujoco", "gymnasium")
WORDS = {
    "trial": "trial",
    "success": "success, unseen tasks [%]",
    "training_success": "success, training tasks [%]",
}


Scores = Mapping[PlannedRun, Mapping[str, float]]  # by name, of runs that have begun


def write_page(
    name: str, experiment: Experiment, runs: Sequence[PlannedRun], to: Path, how: str
) -> Path | None:
    """Write ``NAME.md`` and ``NAME.svg`` into a folder, and return the page; None without a run.

    ``how`` is the command that made it. Raises InputError if the folder cannot be written, or
    matplotlib is not there.
    """
    begun = [run for run in runs if run.done]
    if not begun:
        return None
    make_pages_folder(to)
    picture = _picture(experiment, begun)
    write_whole(to / f"{name}.svg", lambda file: file.write(picture), durable=False)
    path = to / f"{name}.md"
    write_text(path, "\n".join(_page(name, experiment, runs, how)) + "\n")
    return path


def make_pages_folder(folder: Path) -> None:
    """Make the folder of the pages; raises InputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {folder} cannot be made: {error.strerror}.") from None


def write_measured(
    name: str, experiment: Experiment, printed: str, seconds: float, to: Path, how: str
) -> Path:
    """Write ``NAME.md`` of a benchmark that took some seconds, and return it.

    Its picture, ``NAME.svg``, is there; what it ``printed`` is a table in Markdown.
    """
    took = f"{timedelta(seconds=round(seconds))} on one core."
    lines = [*_opening(name, experiment, how, "The table as a picture")]
    lines += ["\n## Table\n", printed.strip(), "\n## Cost\n", took]
    lines += ["\n## Commands\n", "```sh", command(experiment.benchmark), "```"]
    lines += _closing(experiment, versions())
    path = to / f"{name}.md"
    write_text(path, "\n".join(lines) + "\n")
    return path


def _opening(name: str, experiment: Experiment, how: str, picture: str) -> Iterator[str]:
    yield f"# {experiment.title}"
    yield f"\n{experiment.about.strip()}"
    yield f"\nThis page was written by `{how}`, not by hand."
    yield f"\n![{picture}]({name}.svg)"


def _closing(experiment: Experiment, found: Mapping[str, str]) -> Iterator[str]:
    yield f"\nMade with {', '.join(f'{each} {found[each]}' for each in VERSIONS if each in found)}."
    if experiment.remarks:
        yield f"\n## Remarks\n\n{experiment.remarks.strip()}"


def _page(name: str, experiment: Experiment, runs: Sequence[PlannedRun], how: str) -> Iterator[str]:
    begun = [run for run in runs if run.done]
    drawn = "Success" if _has_success(begun) else "Return"
    yield from _opening(name, experiment, how, f"{drawn} by environment steps")
    yield (
        f"\n{drawn}, mean over the tasks of an iteration, after adaptation or of a trial, averaged "
        f"over {WINDOW} iterations: a line for each seed."
    )
    levels = [_drawn_level(each, _has_success(begun)) for each in experiment.methods.values()]
    if any(level is not None for level in levels):
        yield "Dashed lines are published values on unseen tasks."
    yield "\n## Table\n"
    found = {run: scores(run) for run in begun}  # once: a test may end meanwhile
    yield from _table(experiment, found)
    if _has_published(experiment):
        yield from _verdicts(experiment, found)
    yield "\n## Cost\n"
    yield from _costs(runs)
    yield "\n## Commands\n"
    yield "Of the first seed; the others differ in `seed` and in the folder:\n"
    yield "```sh"
    for label in experiment.methods:
        first = next((run for run in begun if run.label == label), None)
        if first:
            yield from commands(first)
    yield "```"
    yield from _closing(experiment, begun[0].run.versions)


def _score_names(experiment: Experiment, found: Scores) -> list[str]:
    """Return the scores that were published, and success where there is success.

    All where that is none.
    """
    published = {each for method in experiment.methods.values() for each in method.published.scores}
    names = dict.fromkeys(each for its in found.values() for each in its)
    kept = [each for each in names if each in published or "success" in each]
    return kept + sorted(published - set(kept)) or list(names)


def _table(experiment: Experiment, found: Scores) -> Iterator[str]:
    names = _score_names(experiment, found)
    yield f"| | {' | '.join(_words(each) for each in names)} |"
    yield "|---" * (len(names) + 1) + "|"
    for label, method in experiment.methods.items():
        mine = {run: its for run, its in found.items() if run.label == label}
        for run, its in mine.items():
            cells = [_number(its[each]) if each in its else "" for each in names]
            yield f"| {run.name} | {' | '.join(cells)} |"
        if len(mine) > 1:
            cells = []
            for each in names:
                values = [its[each] for its in mine.values() if each in its]
                some = 0 < len(values) < len(mine)
                cells.append(_mean(values) + (f" ({len(values)} of them)" if some else ""))
            yield f"| **{label}, mean of {len(mine)} seeds** | {' | '.join(cells)} |"
        if method.published.scores:
            cells = [_published(method, each) for each in names]
            yield f"| {label}, published: {method.published.source} | {' | '.join(cells)} |"
    whose = (
        "ours over seeds, published ones over tasks" if _has_published(experiment) else "over seeds"
    )
    yield f"\n± is the 95 % confidence interval: {whose}."


def _verdicts(experiment: Experiment, found: Scores) -> Iterator[str]:
    yield "\n| | published | ours | seeds that reach it | verdict |"
    yield "|---|---|---|---|---|"
    for label, method in experiment.methods.items():
        mine = [its for run, its in found.items() if run.label == label]
        for score, published in method.published.scores.items():
            values = [each[score] for each in mine if score in each]
            place = f"| {label}, {_words(score)} | {_published(method, score)}"
            if not values:
                yield f"{place} | | | not tested yet |"
                continue
            least = published - experiment.tolerated(method.published, score)
            count = sum(each >= least for each in values)
            mean = float(np.mean(values))
            verdict = "reached" if mean >= least else f"short by {_number(published - mean)}"
            yield f"{place} | {_mean(values)} | {count} of {len(values)} | **{verdict}** |"
    tolerances = {
        f"{label}, {_words(score)}: {_number(tolerated)}"
        for label, method in experiment.methods.items()
        for score in method.published.scores
        if (tolerated := experiment.tolerated(method.published, score))
    }
    if tolerances:
        most = "; ".join(sorted(tolerances))
        yield f"\nReached is what is below the published value by no more than: {most}."


def _costs(runs: Sequence[PlannedRun]) -> Iterator[str]:
    yield (
        "| | iterations | environment steps | at the published return in training after "
        "| published steps | training |"
    )
    yield "|---|---|---|---|---|---|"
    for run in runs:
        if not run.done:
            yield f"| {run.name} | 0 of {run.method.iterations} | | | | not begun |"
            continue
        columns = run.run.columns
        steps = columns["environment_steps"].cumsum()
        level = trained_score(run.method)
        first = run.first_at(level) if level is not None else None
        reached = "" if level is None else "not reached"
        if first:
            reached = f"{_steps(steps[first - 1])} steps, iteration {first}"
        ended = "" if run.is_trained() else ", goes on"
        theirs = run.method.published.environment_steps
        seconds = round(float(columns["iteration_seconds"].sum()))
        yield (
            f"| {run.name} | {run.done} of {run.method.iterations}{ended} | {_steps(steps[-1])} "
            f"| {reached} | {f'up to {_steps(theirs)}' if theirs else ''} "
            f"| {timedelta(seconds=seconds)} |"
        )
    if levels := {run.method.stop_at for run in runs} - {None}:
        yield (
            f"\nTraining ends before its length where the return after adaptation, averaged over "
            f"{WINDOW} iterations, has come to "
            + ", ".join(sorted(_number(each) for each in levels if each is not None))
            + "."
        )


def trained_score(method: Method) -> float | None:
    """Return the published score that training works for: of a trial, or after one update."""
    published = method.published.scores
    return published.get("trial", published.get("after_1"))


def _drawn_level(method: Method, has_success: bool) -> float | None:
    """Return the published score that is drawn beside the curves, which may be of success."""
    return method.published.scores.get("success") if has_success else trained_score(method)


def _has_published(experiment: Experiment) -> bool:
    """Tell whether there are published numbers."""
    return any(method.published.scores for method in experiment.methods.values())


def _has_success(runs: Sequence[PlannedRun]) -> bool:
    """Tell whether the environment of the runs reports success."""
    return SUCCESS in runs[0].run.per_task


def _picture(experiment: Experiment, runs: Sequence[PlannedRun]) -> bytes:
    """Return the learning curves as SVG."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure

        from hpc_maml.report.figures import PALETTE, STYLE, Picture, render
    except ImportError:
        raise InputError("The pages need matplotlib: pip install 'hpc_maml[report]'.") from None
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(6.5, 3.4), layout="constrained")
        axis = figure.add_subplot()
        for (label, method), colour in zip(
            experiment.methods.items(), itertools.cycle(PALETTE), strict=False
        ):
            mine = [run for run in runs if run.label == label]
            for number, run in enumerate(mine):
                steps = run.run.columns["environment_steps"].cumsum()
                axis.plot(
                    *(steps, run.curve),
                    color=colour,
                    linewidth=1.2,
                    alpha=0.8,
                    label=f"{label}, {len(mine)} seeds" if number == 0 else None,
                )
            level = _drawn_level(method, _has_success(runs))
            if mine and level is not None:
                axis.axhline(level, color=colour, linestyle="--", linewidth=1)
        axis.set_xlabel("environment steps")
        trials = all("trial" in each.published.scores for each in experiment.methods.values())
        when = "of a trial" if trials else "after adaptation"
        axis.set_ylabel(f"success {when} [%]" if _has_success(runs) else f"return {when} [reward]")
        axis.ticklabel_format(axis="x", scilimits=(-3, 5))
        axis.margins(x=0.01)
        if len(experiment.methods) > 1:
            axis.legend(loc="best", fontsize=8)
    return render(Picture("curves", "", "", figure), "svg")


def _words(score: str) -> str:
    if score in WORDS:
        return WORDS[score]
    number = score.removeprefix("after_")
    return f"after {number} update{'s' * (number != '1')}"


def _number(value: float) -> str:
    digits = 0 if abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
    return f"{value:,.{digits}f}".replace("-", "−")


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = _number(float(np.mean(values)))
    return mean if len(values) == 1 else f"{mean} ± {_number(float(half_width(np.array(values))))}"


def _published(method: Method, score: str) -> str:
    published = method.published
    if score not in published.scores:
        return ""
    half = published.confidence_95.get(score)
    return _number(published.scores[score]) + (f" ± {_number(half)}" if half else "")


def _steps(number: float) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 1e5 else f"{number:,.0f}"
