"""Whether a run unlearns: its return after adaptation falls for tens of iterations.

Every update may have been accepted, as the line search judges it on the trajectories that it was
computed from. So the returns themselves are compared: the mean of the last iterations with the best
mean of as many earlier ones, in units of the spread of single iterations within the two windows.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class _Window(NamedTuple):
    """Returns of WINDOW iterations, of which ``end`` is the last."""

    end: int
    mean: float
    variance: float
    accepted: int  # updates up to its end
    lowest: float = math.nan  # mean of the windows up to this one


class _Search:
    """The search for falls, window by window; what it keeps does not grow with the run."""

    def __init__(self) -> None:
        self.best = _Window(0, math.nan, math.nan, 0)  # of those that end before the next begins
        self._waiting: deque[_Window] = deque(maxlen=WINDOW)  # those that overlap the next
        self._lowest = math.nan
        self._found: Fall | None = None

    def next(self, window: _Window) -> Fall | None:
        """Return the fall that shows in a window, if it is worth a warning."""
        if len(self._waiting) == WINDOW:
            self._may_be_best(self._waiting[0])
        self._waiting.append(window)
        spread = math.sqrt((self.best.variance + window.variance) / 2)
        fall, gained = self.best.mean - window.mean, self.best.mean - self.best.lowest
        if not (fall > FALL * spread and fall > SHARE * gained):  # nor where one is NaN
            return None
        if before := self._found:
            is_new = window.end >= before.iteration + WINDOW
            if not (is_new and before.mean - window.mean > AGAIN * spread):
                return None
        self._found = Fall(window.end, window.mean, self.best.end, self.best.mean, spread)
        return self._found

    def _may_be_best(self, window: _Window) -> None:
        if math.isnan(window.mean):  # of diverged episodes: it is passed over
            return
        self._lowest = window.mean if math.isnan(self._lowest) else min(self._lowest, window.mean)
        if not window.mean < self.best.mean:
            self.best = window._replace(lowest=self._lowest)


def falls(returns: np.ndarray) -> list[Fall]:
    """Return the falls of the returns ``[iterations]`` that are worth a warning, in order.

    Whether there is one after an iteration depends on the returns up to it only. After one there is
    another only if the returns of WINDOW new iterations are lower by AGAIN.
    """
    search = _Search()
    found = (search.next(window) for window in _windows(returns, np.zeros(len(returns), int)))
    return [each for each in found if each]


def _windows(returns: np.ndarray, accepted: np.ndarray) -> Iterator[_Window]:
    """Yield the windows of returns ``[iterations]``; ``accepted`` are the updates up to each."""
    if len(returns) < WINDOW:
        return
    windows = sliding_window_view(returns, WINDOW)
    means, variances = windows.mean(-1).tolist(), windows.var(-1, ddof=1).tolist()
    counts = accepted[WINDOW - 1 :].tolist()
    for end, numbers in enumerate(zip(means, variances, counts, strict=True), WINDOW):
        yield _Window(end, *numbers)


class Watch:
    """Looks for falls while a run goes on; what it keeps does not grow with the run."""

    def __init__(self, earlier: Mapping[str, np.ndarray]) -> None:
        """Begin after iterations with these columns, as ``unlearning`` takes them."""
        self._search = _Search()
        columns = _columns(earlier)
        accepted = np.cumsum(columns["accepted"])
        for window in _windows(columns["post_update_return_mean"], accepted):
            self._search.next(window)
        self._done, self._accepted = len(accepted), int(accepted[-1]) if len(accepted) else 0
        self._last = {name: deque(values[-WINDOW:], WINDOW) for name, values in columns.items()}

    def sentence(self, row: Mapping[str, Any]) -> str:
        """Return a sentence on the fall that shows after the next iteration, empty without one."""
        self._done += 1
        self._accepted += int(row["accepted"])
        for name, values in self._last.items():
            values.append(row[name])
        returns = np.array(self._last["post_update_return_mean"])
        if len(returns) < WINDOW:
            return ""
        numbers = float(returns.mean()), float(returns.var(ddof=1)), self._accepted
        fall = self._search.next(_Window(self._done, *numbers))
        if not fall:
            return ""
        accepted = self._accepted - self._search.best.accepted
        return _sentence(fall, accepted, self._last.get("gradient_snr"))


def unlearning(metrics: Mapping[str, np.ndarray]) -> str:
    """Return a sentence on the last fall, empty without one.

    ``metrics`` are columns of metrics.METRICS, and of the algorithm, of all iterations.
    """
    if any(name not in metrics for name in NEEDED):  # a run of an older program
        return ""
    columns = _columns(metrics)
    found = falls(columns["post_update_return_mean"])
    if not found:
        return ""
    last = found[-1]
    accepted = columns["accepted"][last.best_iteration : last.iteration].sum()
    snr = columns.get("gradient_snr")
    recent = None if snr is None else snr[last.iteration - WINDOW : last.iteration]
    return _sentence(last, int(accepted), recent)


def _columns(metrics: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.asarray(metrics[name]) for name in USED if name in metrics}


def _sentence(fall: Fall, accepted: int, snr: Iterable[float] | None) -> str:
    """Return the sentence on a fall; ``snr`` are values of gradient_snr in its low window."""
    sentence = (
        f"the return after adaptation fell from {fall.best:.2f} (mean of {WINDOW} iterations up to "
        f"{fall.best_iteration}) to {fall.mean:.2f} (up to {fall.iteration}), with a spread of "
        f"{fall.spread:.2f}, though {accepted} of {fall.iteration - fall.best_iteration} updates "
        "were accepted"
    )
    if snr is None:
        return sentence
    return (
        f"{sentence}; look at the settings of the outer step, and at gradient_snr, which is near 1 "
        f"where the gradient is noise (median {np.median(list(snr)):.1f})"
    )
