"""The linear time-feature baseline (Duan et al. 2016, "Benchmarking deep RL", appendix)."""

import numpy as np

OF_TIME = 4  # features, the last ones
SAMPLES = 4  # for each feature; with fewer, the fit explains what chance and actions did, too


def features(observations: np.ndarray) -> np.ndarray:
    """Return float64 ``[T, B, 2 d + 4]`` for observations ``[T, B, d]``: state, time and 1."""
    clipped = observations.astype(np.float64).clip(-10, 10)
    time = np.arange(len(observations)) / 100
    powers = np.stack([time, time**2, time**3, np.ones_like(time)], axis=-1)[:, None]
    powers = np.broadcast_to(powers, (*observations.shape[:2], 4))
    return np.concatenate([clipped, clipped**2, powers], axis=-1)


def fit(observations: np.ndarray, returns: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Return the coefficients ``[2 d + 4]`` of the least-squares fit to ``returns[valid]``.

    ``returns`` and ``valid`` are ``[T, B]``. Where these are few for so many features, only those
    of time are fitted. The ridge starts at 1e-5 and grows tenfold until the normal equations have a
    finite solution; data that is not finite gives NaN, not an error: one diverged episode shows as
    a rejected update.
    """
    matrix, target = features(observations)[valid], returns[valid]
    if len(matrix) < SAMPLES * matrix.shape[1]:
        matrix[:, :-OF_TIME] = 0
    gram, moment = matrix.T @ matrix, matrix.T @ target
    for ridge in 1e-5 * 10.0 ** np.arange(10):
        try:
            coefficients = np.linalg.solve(gram + ridge * np.eye(len(gram)), moment)
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(coefficients).all():
            return coefficients
    return np.full(len(gram), np.nan)


def predict(coefficients: np.ndarray, observations: np.ndarray) -> np.ndarray:
    """Return the baseline's values, float64 ``[T, B]``, for observations ``[T, B, d]``."""
    values: np.ndarray = features(observations) @ coefficients
    return values
