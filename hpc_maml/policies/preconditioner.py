"""Approximate inverses of a policy's Fisher matrix, which precondition conjugate gradient.

A network says which terms of a task its approximation is made of. Their mean over tasks becomes an
inverse here. All agents must come to the same bits, also on nodes of different processors: every
line is an elementwise operation of NumPy in float64, never BLAS or LAPACK.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Array = Any  # a NumPy array or a torch tensor
Inverse = Callable[[np.ndarray], np.ndarray]  # multiplies a vector [n] by an inverse


def second_moments(rows: Array, weights: Array) -> Array:
    """Return the sum over n of weights_n rows_n rows_n^T as its upper triangle.

    ``rows`` are ``[..., N, width]``, ``weights`` ``[..., N]``; the result is
    ``[..., width (width + 1) / 2]``.
    """
    moments = (weights[..., None] * rows).mT @ rows
    return moments[(..., *_upper(rows.shape[-1]))]


def triangle_size(width: int) -> int:
    """Return the size of the upper triangle of a matrix ``[width, width]``."""
    return width * (width + 1) // 2


def kronecker_inverse(inputs: np.ndarray, outputs: np.ndarray, damping: float) -> Inverse:
    """Return the inverse of A (x) G of a layer (Martens and Grosse 2015, section 3).

    ``inputs`` and ``outputs`` are the upper triangles of A, the second moments of the layer's
    inputs, and of G, those of unit gradients by its outputs. To the diagonal of each is added
    ``damping`` times its mean. The inverse takes weights ``[rows, columns]``, flat.
    """
    left, right = (_damped_inverse(_symmetric(part), damping) for part in (inputs, outputs))

    def multiply(vector: np.ndarray) -> np.ndarray:
        matrix = vector.reshape(len(left), len(right))
        # G^-1 is symmetric: V G^-1 = (G^-1 V^T)^T
        return _product(left, _product(right, matrix.T).T).ravel()

    return multiply


def diagonal_inverse(diagonal: np.ndarray, damping: float) -> Inverse:
    """Return the inverse of a diagonal ``[n]`` to which ``damping`` times its mean is added."""
    inverse: np.ndarray = 1 / _damped(diagonal, damping)
    return lambda vector: vector * inverse


def blockwise(inverses: Sequence[tuple[int, Inverse]]) -> Inverse:
    """Return the inverse of a block-diagonal matrix, of its blocks with their sizes."""
    edges = np.cumsum([size for size, _ in inverses])[:-1]

    def multiply(vector: np.ndarray) -> np.ndarray:
        parts = zip(inverses, np.split(vector, edges), strict=True)
        return np.concatenate([inverse(part) for (_, inverse), part in parts])

    return multiply


def _damped(diagonal: np.ndarray, damping: float) -> np.ndarray:
    """Return a diagonal with a part of its mean added; of zeros only, ones."""
    mean = diagonal.sum() / len(diagonal)
    return diagonal + damping * mean if mean > 0 else np.ones_like(diagonal)


def _damped_inverse(matrix: np.ndarray, damping: float) -> np.ndarray:
    """Return the inverse of a damped positive semidefinite matrix, by Gauss-Jordan elimination."""
    inverse = matrix.copy()
    np.fill_diagonal(inverse, _damped(np.diagonal(matrix), damping))
    for pivot in range(len(inverse)):
        size = inverse[pivot, pivot]
        row, column = inverse[pivot] / size, inverse[:, pivot].copy()
        inverse -= column[:, None] * row
        inverse[:, pivot] = -column / size
        inverse[pivot] = row
        inverse[pivot, pivot] = 1 / size
    return inverse


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the matrix product, always in the same order of additions."""
    product: np.ndarray = left[:, :1] * right[0]
    for column in range(1, len(right)):
        product += left[:, column, None] * right[column]
    return product


def _symmetric(triangle: np.ndarray) -> np.ndarray:
    """Return the matrix of an upper triangle."""
    width = int((np.sqrt(8 * len(triangle) + 1) - 1) / 2)
    matrix = np.empty((width, width))
    rows, columns = _upper(width)
    matrix[rows, columns] = matrix[columns, rows] = triangle
    return matrix


def _upper(width: int) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = np.triu_indices(width)
    return rows, columns
