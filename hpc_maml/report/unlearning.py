"""Whether a run unlearns: its return after adaptation falls for tens of iterations.

Every update may have been accepted, as the line search judges it on the trajectories that it was
computed from. So the returns themselves are compared: the mean of the last iterations with the best
mean of as many earlier ones, in units of the spread of single iterations within the two windows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

WINDOW = 20  # iterations
# The difference of two means of 20 has a standard error of 0.32 of the spread, so this is 8 of
# them: of the thousands of pairs of windows in a run, chance brings none so far. Noise that lasts
# (a correlation of 0.5 from one iteration to the next) does in 2 of 100 runs that learn nothing.
FALL = 2.5  # in units of the spread
SHARE = 0.1  # of what was gained before: where there is hardly any noise, less is no fall
AGAIN = 2.0  # further, in units of the spread, before it is said again
NEEDED = ("post_update_return_mean", "accepted")
USED = (*NEEDED, "gradient_snr")  # the columns, as far as a run has them


@dataclass(frozen=True)
class Fall:
    """What is found after an iteration; windows are of WINDOW iterations."""

    iteration: int  # the last of the low window, counted from 1
    mean: float  # of the returns in it
    best_iteration: int  # the last of the best window before it
    best: float  # mean of the returns in that
    spread: float  # standard deviation of an iteration within windows


def falls(returns: np.ndarray) -> list[Fall]:
    """Return the falls of the returns ``[iterations]`` that are worth a warning, in order.

    Whether there is one after an iteration depends on the returns up to it only. After one there is
    another only if the returns of WINDOW new iterations are lower by AGAIN.
    """
    if len(returns) < 2 * WINDOW:
        return []
    windows = sliding_window_view(returns, WINDOW)
    mean, variance = windows.mean(-1), windows.var(-1, ddof=1)
    best = np.fmax.accumulate(mean)  # NaN, of diverged episodes, is passed over
    latest_best = np.maximum.accumulate(np.where(mean == best, np.arange(len(mean)), 0))
    # for each window, the best of those that end before it begins
    low = np.arange(WINDOW, len(mean))
    high = latest_best[low - WINDOW]
    fall, gained = mean[high] - mean[low], mean[high] - np.fmin.accumulate(mean)[high]
    spread = np.sqrt((variance[high] + variance[low]) / 2)
    found: list[Fall] = []
    for each in np.flatnonzero(fall > np.maximum(FALL * spread, SHARE * gained)):
        iteration, level = int(low[each]) + WINDOW, float(mean[low[each]])
        if found:
            is_new = iteration >= found[-1].iteration + WINDOW
            if not (is_new and found[-1].mean - level > AGAIN * spread[each]):
                continue
        best_window = int(high[each])
        numbers = best_window + WINDOW, float(mean[best_window]), float(spread[each])
        found.append(Fall(iteration, level, *numbers))
    return found


def unlearning(metrics: Mapping[str, np.ndarray], *, now: bool) -> str:
    """Return a sentence on the last fall, empty without one.

    ``metrics`` are columns of metrics.METRICS, and of the algorithm, of all iterations so far. With
    ``now``, only a fall that shows after the last of them counts.
    """
    if any(name not in metrics for name in NEEDED):  # a run of an older program
        return ""
    columns = {name: np.asarray(metrics[name]) for name in USED if name in metrics}
    found = falls(columns["post_update_return_mean"])
    if not found or (now and found[-1].iteration < len(columns["accepted"])):
        return ""
    last = found[-1]
    accepted = columns["accepted"][last.best_iteration : last.iteration]
    sentence = (
        f"the return after adaptation fell from {last.best:.2f} (mean of {WINDOW} iterations up to "
        f"{last.best_iteration}) to {last.mean:.2f} (up to {last.iteration}), with a spread of "
        f"{last.spread:.2f}, though {accepted.sum()} of {len(accepted)} updates were accepted"
    )
    if "gradient_snr" not in columns:
        return sentence
    recent = float(np.median(columns["gradient_snr"][last.iteration - WINDOW : last.iteration]))
    return (
        f"{sentence}; look at the settings of the outer step, and at gradient_snr, which is near 1 "
        f"where the gradient is noise (median {recent:.1f})"
    )
