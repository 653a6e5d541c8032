"""Conjugate gradient and backtracking line search (Schulman et al. 2015, appendix C), in float64.

All agents run these lines on the same numbers and must come to the same bits, whatever their
number of threads: inner products are elementwise products and sums, never BLAS.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Product = Callable[[np.ndarray], np.ndarray]  # multiplies a vector [P] by a matrix

INTERPOLATION_MARGIN = 0.98  # of the length that should have the KL allowed


class ConjugateGradient(NamedTuple):
    """An approximate solution of F x = g."""

    solution: np.ndarray  # [P]
    residual: np.ndarray  # [P], g - F x
    iterations: int
    pairs: np.ndarray  # [iterations, 2, P], each direction of length 1, and its product with F


def conjugate_gradient(
    fisher_vector_product: Callable[[np.ndarray], np.ndarray],
    gradient: np.ndarray,
    iterations: int,
    residual_tolerance: float = 1e-10,
    precondition: Callable[[np.ndarray], np.ndarray] | None = None,
) -> ConjugateGradient:
    """Solve F x = gradient ``[P]`` in at most ``iterations`` products, from x = 0.

    ``precondition`` multiplies by an approximate inverse of F (Golub and Van Loan 2013, section
    11.5).

    Ends early when the squared norm of the residual is below ``residual_tolerance``, and, with what
    it has, at a direction along which F is not positive (rounding) or not finite.
    """
    precondition = precondition or (lambda vector: vector)
    solution, residual = np.zeros_like(gradient), gradient
    direction = improved = precondition(residual)
    squared_norm = (residual * improved).sum()
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    done = 0
    while done < iterations and (residual * residual).sum() >= residual_tolerance:
        product = fisher_vector_product(direction)
        curvature = (direction * product).sum()
        if not 0 < curvature < np.inf:
            break
        size = np.sqrt((direction * direction).sum())
        pairs.append((direction / size, product / size))
        length = squared_norm / curvature
        solution = solution + length * direction
        residual = residual - length * product
        improved = precondition(residual)
        previous, squared_norm = squared_norm, (residual * improved).sum()
        direction = improved + squared_norm / previous * direction
        done += 1
    found = np.array(pairs).reshape(done, 2, gradient.size)
    return ConjugateGradient(solution, residual, done, found)


def quasi_newton_inverse(pairs: np.ndarray, initial: Product | None = None) -> Product:
    """Return an approximate inverse of F that agrees with products with F, older ones first.

    ``pairs`` are directions and their products, ``[m, 2, P]``; those along which F is not positive,
    and zeros, are left out. ``initial`` is the inverse before them, up to a factor: by default 1.
    (Nocedal and Wright 2006, algorithm 7.4; pairs of earlier conjugate gradients: Morales and
    Nocedal 2000.)
    """
    initial = initial or (lambda vector: vector)
    known = []
    for direction, product in pairs.astype(np.float64):
        curvature = (direction * product).sum()
        if 0 < curvature < np.inf:
            known.append((direction, product, curvature))
    if not known:
        return initial
    _, product, curvature = known[-1]
    scale = curvature / (product * initial(product)).sum()

    def multiply(vector: np.ndarray) -> np.ndarray:
        lengths = []
        for direction, product, curvature in reversed(known):
            length = (direction * vector).sum() / curvature
            lengths.append(length)
            vector = vector - length * product
        vector = scale * initial(vector)
        for (direction, product, curvature), length in zip(known, reversed(lengths), strict=True):
            vector = vector + (length - (product * vector).sum() / curvature) * direction
        return vector

    return multiply


class LineSearch(NamedTuple):
    """The outcome of a line search; losses and KL are those of the last candidate."""

    theta: np.ndarray | None  # [P], None if no candidate was accepted
    steps: int  # candidates judged
    surrogate: float
    kl: float


def line_search(
    evaluate: Callable[[np.ndarray], tuple[float, float]],
    theta: np.ndarray,
    full_step: np.ndarray,
    max_kl: float,
    max_steps: int,
    backtrack_ratio: float,
    surrogate_before: float,
    *,
    interpolate: bool = False,
) -> LineSearch:
    """Return the first of theta + length_j full_step, j = 0 ... max_steps - 1, that ``evaluate``
    finds to have a lower surrogate loss and a KL divergence of at most ``max_kl``.

    ``evaluate`` returns (surrogate loss, KL) of a candidate ``[P]``, which has theta's dtype.
    length_j is ``backtrack_ratio``^j. To ``interpolate`` is to take a candidate that only has too
    large a KL as a measurement: the KL grows with the square of the length, so the next candidate
    has the length at which it is ``max_kl``, or ``backtrack_ratio`` times the length if that is
    shorter by more than this.
    """
    length = 1.0
    for step in range(max_steps):
        candidate = (theta + length * full_step).astype(theta.dtype)
        surrogate, kl = evaluate(candidate)
        # written so that NaN is refused
        if surrogate < surrogate_before and kl <= max_kl:
            return LineSearch(candidate, step + 1, surrogate, kl)
        shorter = backtrack_ratio
        if interpolate and surrogate < surrogate_before:
            shorter = max(shorter, INTERPOLATION_MARGIN * np.sqrt(max_kl / kl))
        length = backtrack_ratio ** (step + 1) if not interpolate else length * shorter
    return LineSearch(None, max_steps, surrogate, kl)
