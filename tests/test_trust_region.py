"""Conjugate gradient against a dense solve, the line search on functions worked out by hand."""

import numpy as np
import pytest

from hpc_maml.algorithms.trust_region import (
    conjugate_gradient,
    line_search,
    quasi_newton_inverse,
)


def positive_definite(size):
    rng = np.random.default_rng(0)
    root = rng.standard_normal((size, size))
    return root @ root.T + np.eye(size), rng.standard_normal(size)


def test_conjugate_gradient_agrees_with_a_dense_solve():
    matrix, gradient = positive_definite(12)
    before = gradient.copy()
    found = conjugate_gradient(lambda vector: matrix @ vector, gradient, 50)
    np.testing.assert_allclose(found.solution, np.linalg.solve(matrix, gradient), atol=1e-5)
    np.testing.assert_allclose(found.residual, gradient - matrix @ found.solution, atol=1e-9)
    assert (found.residual**2).sum() < 1e-10
    assert found.iterations < 50
    assert np.array_equal(gradient, before)


def test_conjugate_gradient_minimises_over_the_krylov_space_of_its_iterations():
    matrix, gradient = positive_definite(12)
    found = conjugate_gradient(lambda vector: matrix @ vector, gradient, 3)
    assert found.iterations == 3
    krylov = np.stack([gradient, matrix @ gradient, matrix @ matrix @ gradient], axis=1)
    best = krylov @ np.linalg.solve(krylov.T @ matrix @ krylov, krylov.T @ gradient)
    np.testing.assert_allclose(found.solution, best, rtol=1e-8)


def test_a_preconditioner_minimises_over_its_own_krylov_space():
    matrix, gradient = positive_definite(12)
    rough = matrix + 3 * np.eye(12)
    apply = lambda vector: np.linalg.solve(rough, vector)  # noqa: E731
    found = conjugate_gradient(lambda v: matrix @ v, gradient, 3, precondition=apply)
    assert found.iterations == 3
    first = apply(gradient)
    second = apply(matrix @ first)
    krylov = np.stack([first, second, apply(matrix @ second)], axis=1)
    best = krylov @ np.linalg.solve(krylov.T @ matrix @ krylov, krylov.T @ gradient)
    np.testing.assert_allclose(found.solution, best, rtol=1e-8)
    np.testing.assert_allclose(found.residual, gradient - matrix @ found.solution, atol=1e-9)
    exact = conjugate_gradient(
        lambda v: matrix @ v, gradient, 9, precondition=lambda v: np.linalg.solve(matrix, v)
    )
    assert exact.iterations == 1
    np.testing.assert_allclose(exact.solution, np.linalg.solve(matrix, gradient), rtol=1e-9)


def dense_inverse(pairs, initial):
    """Return the BFGS inverse as a matrix, updated pair by pair (Nocedal and Wright 2006, 6.17)."""
    one = np.eye(pairs.shape[-1])
    s, y = pairs[-1]
    inverse = (s @ y) / (y @ initial @ y) * initial
    for s, y in pairs:
        rho = 1 / (s @ y)
        left = one - rho * np.outer(s, y)
        inverse = left @ inverse @ left.T + rho * np.outer(s, s)
    return inverse


def test_earlier_products_make_the_inverse_of_bfgs():
    rng = np.random.default_rng(3)
    root = rng.standard_normal((7, 7))
    pairs = np.stack([np.stack([s, root @ root.T @ s]) for s in rng.standard_normal((4, 7))])
    vector = rng.standard_normal(7)
    expected = dense_inverse(pairs, np.eye(7)) @ vector
    assert np.allclose(quasi_newton_inverse(pairs)(vector), expected, rtol=1e-10)
    diagonal = rng.random(7) + 0.5
    expected = dense_inverse(pairs, np.diag(diagonal)) @ vector
    found = quasi_newton_inverse(pairs, lambda each: diagonal * each)(vector)
    assert np.allclose(found, expected, rtol=1e-10)
    # what is not there yet, and what rounding made useless
    more = np.concatenate([np.zeros((2, 2, 7)), pairs[:2], [[vector, -vector]], pairs[2:]])
    assert np.array_equal(quasi_newton_inverse(more)(vector), quasi_newton_inverse(pairs)(vector))
    assert quasi_newton_inverse(np.zeros((3, 2, 7)))(vector) is vector
    assert quasi_newton_inverse(np.zeros((3, 2, 7)), np.negative)(vector)[0] == -vector[0]


def test_the_products_of_one_solution_solve_the_next():
    rng = np.random.default_rng(4)
    root = rng.standard_normal((6, 6))
    fisher, gradient = root @ root.T + np.eye(6), rng.standard_normal(6)
    found = conjugate_gradient(fisher.dot, gradient, 6, residual_tolerance=0.0)
    assert found.pairs.shape == (6, 2, 6)
    assert np.allclose(np.linalg.norm(found.pairs[:, 0], axis=1), 1)
    assert np.allclose(found.pairs[:, 1], found.pairs[:, 0] @ fisher)
    inverse = quasi_newton_inverse(found.pairs)
    other = rng.standard_normal(6)
    assert np.allclose(inverse(other), np.linalg.solve(fisher, other))
    again = conjugate_gradient(fisher.dot, other, 1, precondition=inverse)
    assert np.allclose(again.solution, np.linalg.solve(fisher, other))


def test_conjugate_gradient_stops_where_the_curvature_is_not_positive():
    gradient = np.array([3.0, 4.0])
    for image in (-gradient, np.full(2, np.nan), np.zeros(2)):
        found = conjugate_gradient(lambda vector, image=image: image, gradient, 10)
        assert (found.iterations, found.solution.tolist()) == (0, [0.0, 0.0])
        assert found.residual.tolist() == [3.0, 4.0]
    # indefinite, and seen to be so in the second product: x after the first stays
    found = conjugate_gradient(lambda vector: np.array([1.0, -0.5]) * vector, gradient, 10)
    assert found.iterations == 1
    np.testing.assert_allclose(found.solution, gradient * 25 / (9 - 8))


def search(evaluate, max_steps=5):
    theta, full_step = np.array([1.0], np.float32), np.array([-8.0])
    return line_search(evaluate, theta, full_step, 4.0, max_steps, 0.5, 10.0)


def test_line_search_takes_the_first_candidate_that_improves_within_the_trust_region():
    # candidates 1 - 8, 1 - 4, 1 - 2: KL |x - 1| is 8, 4, 2; the loss improves from -3 on
    found = search(lambda theta: (9.0 if theta[0] > -4 else 10.0, abs(theta[0] - 1)))
    assert (found.theta.tolist(), found.steps, found.surrogate, found.kl) == ([-3.0], 2, 9.0, 4.0)
    assert found.theta.dtype == np.float32
    found = search(lambda theta: (9.0 if theta[0] > -2 else 10.0, abs(theta[0] - 1)))
    assert (found.theta.tolist(), found.steps) == ([-1.0], 3)


def test_an_interpolating_line_search_stays_near_the_edge_of_the_trust_region():
    theta, full_step = np.array([1.0]), np.array([-8.0])
    tried = []

    def evaluate(candidate):
        length = float((1 - candidate[0]) / 8)
        tried.append(length)
        # too far, nothing is gained; then the KL is that of a square, but not of the same
        return (9.0 if length < 0.9 else 11.0), (1.4 if length > 0.6 else 1.2) * 4 * length**2 / 0.5

    found = line_search(evaluate, theta, full_step, 4.0, 9, 0.7, 10.0, interpolate=True)
    # the first gains nothing: 0.7; its KL is 5.488: 0.98 sqrt(4 / 5.488) of it; then one is inside
    assert tried == pytest.approx([1, 0.7, 0.7 * 0.98 * np.sqrt(4 / 5.488)])
    assert (found.theta[0], found.steps) == (1 - 8 * tried[-1], 3)
    assert 3 < found.kl <= 4
    # never by more than the ratio at once, and a KL that is not a number counts as none
    for kl in (1e9, np.inf, np.nan):
        tried.clear()

        def far(candidate, kl=kl):
            tried.append(float((1 - candidate[0]) / 8))
            return 9.0, kl

        line_search(far, theta, full_step, 4.0, 3, 0.5, 10.0, interpolate=True)
        assert tried == pytest.approx([1, 0.5, 0.25])


def test_line_search_refuses_what_does_not_improve_leaves_the_region_or_is_not_a_number():
    for surrogate, kl in ((10.0, 0.0), (9.0, 4.1), (np.nan, 0.0), (9.0, np.nan)):
        found = search(lambda theta, result=(surrogate, kl): result, max_steps=3)
        assert found.theta is None
        assert found.steps == 3
        np.testing.assert_equal((found.surrogate, found.kl), (surrogate, kl))
