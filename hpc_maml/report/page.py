"""The page of a report: one HTML file with everything in it, so that it can be sent by mail."""

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from html import escape as escape_html

import numpy as np
import yaml

from hpc_maml.errors import printable
from hpc_maml.report.advice import advise
from hpc_maml.report.experiments import Environment, Experiment, RunData, kinds
from hpc_maml.report.figures import Picture
from hpc_maml.report.phases import EPISODE, FIRST
from hpc_maml.report.statistics import (
    FEW_SEEDS,
    Band,
    optima,
    policies,
    test_returns,
    tested_after,
    trial_returns,
)
from hpc_maml.report.tables import Quantity, aggregate_rows, quantities
from hpc_maml.report.unlearning import unlearning
from hpc_maml.storage.meta_tests import half_width

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
       max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; }
h2 { margin-top: 3rem; border-bottom: 1px solid #ccc; }
figure { margin: 2rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption, .note { color: #555; font-size: 0.9rem; max-width: 48rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; }
th, td { padding: 0.3rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right;
         white-space: nowrap; font-variant-numeric: tabular-nums; }
th { text-align: left; font-weight: 600; }
thead th { text-align: right; vertical-align: bottom; white-space: normal; min-width: 4rem; }
thead th:first-child { text-align: left; }
th:first-child { position: sticky; left: 0; background: #fff; }
th.mean, td.mean { background: #f4f4f4; font-weight: 600; }
.unit { color: #555; font-weight: 400; }
pre { font-size: 0.8rem; background: #f7f7f7; padding: 0.7rem; overflow-x: auto; }
"""


def escape(text: str) -> str:
    """Return a text as HTML that shows it, with line breaks as they are."""
    return "\n".join(escape_html(printable(line)) for line in text.split("\n"))


def page(
    environments: Sequence[Environment],
    pictures: Mapping[str, Sequence[tuple[Picture, bytes]]],
    notes: Sequence[str],
) -> str:
    """Return the HTML of a report; ``pictures`` are those of each environment with their SVG."""
    names = ", ".join(environment.name for environment in environments)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{escape(names)}: report of hpc_maml</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(names)}</h1>",
        f'<p class="note">Report of hpc_maml, {datetime.now():%Y-%m-%d %H:%M}. All numbers are in '
        "CSV files and all pictures in PNG, SVG and PDF files, too, written with this page.</p>",
    ]
    parts += [f'<p class="note">Note: {escape(note)}</p>' for note in notes]
    for environment in environments:
        parts.append(f"<h2>{escape(environment.name)}</h2>")
        parts += [
            f'<p class="note">{escape(each.key)}</p>'
            for each in environment.experiments
            if each.key != each.label
        ]
        parts += [_table(environment), _aggregates(environment), *_tests(environment)]
        parts += [_figure(*each) for each in pictures[environment.name]]
        parts.append("<h3>Runs</h3>")
        parts += [
            f'<p class="note">{escape(run.name)}: {escape(sentence)}.</p>'
            for each in environment.experiments
            for run in each.runs
            for sentence in (
                "; ".join(
                    advise(
                        run.metrics, run.config["meta_batch_size"], run.versions.get("layout", "")
                    )
                ),
                unlearning(run.metrics),
            )
            if sentence
        ]
        parts += [_details(run) for each in environment.experiments for run in each.runs]
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _figure(picture: Picture, svg: bytes) -> str:
    data = base64.b64encode(svg).decode("ascii")
    return (
        f"<h3>{escape(picture.title)}</h3><figure>"
        f'<img alt="{escape(picture.title)}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )


def _table(environment: Environment) -> str:
    """Return runs and the means of experiments as rows, their quantities as columns."""
    found = quantities([environment])
    head = "".join(
        f"<th>{escape(each.words)}{_unit(each)}</th>"
        for each in [Quantity("iterations", "1", lambda run: 0, ""), *found.values()]
    )
    several = len(environment.experiments) > 1
    body = []
    for experiment in environment.experiments:
        rows: list[tuple[str, Sequence[RunData]]] = [
            (_heading(run.name, experiment if several else None), [run]) for run in experiment.runs
        ]
        if len(experiment.runs) > 1:
            rows.append((escape(f"mean of {experiment.label}"), experiment.even_runs))
        for name, runs in rows:
            mean = len(runs) > 1
            iterations = experiment.iterations if mean else len(runs[0].metrics)
            cells = [str(iterations), *(_text(quantity, runs) for quantity in found.values())]
            row = "".join(_cell("td", cell, mean=mean) for cell in cells)
            body.append(f"<tr>{_cell('th', name, mean=mean)}{row}</tr>")
    return (
        f'<div class="wide"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        '<p class="note">Returns are means over the last tenth of the iterations; medians and sums '
        "are over all of them, and means of seeds over those that all have done. ± is the 95 % "
        "confidence interval of the mean over seeds; of fewer "
        f"than {FEW_SEEDS} seeds, the lowest and the highest stand instead.</p>"
    )


def _aggregates(environment: Environment) -> str:
    """Return what the seeds of each experiment come to; empty where there is one seed of each."""
    if all(len(each.runs) == 1 for each in environment.experiments):
        return ""
    rows = aggregate_rows([environment])
    names = ["experiment", "score", "seeds", "mean", "interquartile mean", "95 % interval"]
    head = "".join(f"<th>{name}</th>" for name in names)
    body = []
    for row in rows:
        interval = ""
        if not np.isnan(row["low_95"]):
            interval = f"{row['low_95']:,.2f} to {row['high_95']:,.2f}"
        numbers = [f"{row[name]:,.2f}" for name in ("mean", "interquartile_mean")]
        cells = [row["score"], str(row["seeds"]), *numbers, interval]
        text = "".join(f"<td>{each.replace('-', '−')}</td>" for each in cells)
        body.append(f"<tr><th>{escape(row['experiment'])}</th>{text}</tr>")
    return (
        f'<h3>Aggregates over seeds</h3><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        '<p class="note">The score of a run is its mean return in the last phase: in training, '
        "over the last tenth of the iterations, and on the unseen tasks of its last meta-test, of "
        "RL² in a whole trial. The interquartile mean leaves out the lowest and the highest "
        "quarter of the runs; its interval is that of the bootstrap (Agarwal et al. 2021), for "
        f"which there must be {FEW_SEEDS} seeds. How likely a run of one experiment is above one "
        "of another is in aggregates.csv.</p>"
    )


def _unit(quantity: Quantity) -> str:
    return "" if quantity.unit == "1" else f' <span class="unit">[{quantity.unit}]</span>'


def _tests(environment: Environment) -> list[str]:
    """Return what every policy gets on unseen tasks, a table for each kind of phases."""
    tested = [each for each in environment.experiments if policies(each)]
    several = len(environment.experiments) > 1
    return [
        _tests_of_kind(kind, [each for each in tested if each.phase == kind], several=several)
        for kind in kinds(tested)
    ]


def _tests_of_kind(kind: str, experiments: Sequence[Experiment], *, several: bool) -> str:
    """Return a row for every policy, a column for every phase, and one for a whole trial.

    With ``several`` experiments in the environment, they are named.
    """
    rows = [(each, policy) for each in experiments for policy in policies(each)]
    bands = [test_returns(*row) for row in rows]
    most = max(len(band.middle) for band in bands)
    body = []
    for (experiment, policy), band in zip(rows, bands, strict=True):
        few = 1 < len(tested_after(experiment)) < FEW_SEEDS
        cells = _around(band, few=few)
        cells += [""] * (most - len(cells))
        if kind == EPISODE:
            total = trial_returns(experiment, policy)
            cells += _around(total, few=few) if total else [""]
        name = f"{experiment.label}: {policy}" if several else policy
        row = "</td><td>".join(cells)
        body.append(f"<tr><th>{escape(name)}</th><td>{row}</td></tr>")
    for name, mean in optima(experiments[0]).items():
        text = f"{mean:,.2f}".replace("-", "−")
        body.append(f'<tr><th>{escape(name)}</th><td colspan="{most}">{text}</td></tr>')
    heads = [str(FIRST[kind] + phase) for phase in range(most)]
    words = "after updates"
    if kind == EPISODE:
        heads.append("whole trial")
        words = "in each episode of a trial"
    head = "".join(f"<th>{each}</th>" for each in heads)
    when = "; ".join(
        (f"{escape(each.label)}: " if several else "") + _when_tested(each) for each in experiments
    )
    return (
        f'<div class="wide"><table><thead><tr><th>return on unseen tasks {words}</th>'
        f"{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        f'<p class="note">Tested: {when}.</p>'
    )


def _when_tested(experiment: Experiment) -> str:
    """Say which runs of an experiment were tested, and after which iterations."""
    after = sorted(set(tested_after(experiment)))
    tested, runs = len(tested_after(experiment)), len(experiment.runs)
    which = "" if runs == 1 else f"{tested} of {runs} runs "
    return f"{which}after {', '.join(map(str, after))} iterations"


def _around(band: Band, *, few: bool) -> list[str]:
    """Return means as text, each with its interval; of few seeds with the lowest and highest."""
    texts = [
        f"{mean:,.2f} ({low:,.2f} to {high:,.2f})" if few else f"{mean:,.2f} ± {high - mean:,.2f}"
        for mean, low, high in zip(*band, strict=True)
    ]
    return [text.replace("-", "−") for text in texts]


def _text(quantity: Quantity, runs: Sequence[RunData]) -> str:
    values = np.array([quantity.of(run) for run in runs])
    mean = values.mean()
    if np.isnan(mean):
        return ""
    layout = quantity.layout
    if layout == ",.0f" and len(values) > 1 and mean < 100:
        layout = ",.1f"
    text = f"{mean:{layout}}"
    if 1 < len(values) < FEW_SEEDS:
        text += f" ({values.min():{layout}} to {values.max():{layout}})"
    elif len(values) > 1:
        text += f" ± {half_width(values):{layout}}"
    return text.replace("-", "−")


def _heading(name: str, experiment: Experiment | None) -> str:
    label = f'<br><span class="unit">{escape(experiment.label)}</span>' if experiment else ""
    return escape(name) + label


def _cell(tag: str, content: str, *, mean: bool) -> str:
    return f'<{tag} class="mean">{content}</{tag}>' if mean else f"<{tag}>{content}</{tag}>"


def _details(run: RunData) -> str:
    versions = "\n".join(f"{name}: {value or 'unknown'}" for name, value in run.versions.items())
    config = yaml.safe_dump(run.config, sort_keys=False)
    return (
        f"<details><summary>{escape(run.name)}: {escape(str(run.run.path))}</summary>"
        f"<pre>{escape(versions)}</pre><pre>{escape(config)}</pre></details>"
    )
