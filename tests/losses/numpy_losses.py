"""The losses once more, row by row in NumPy float64, written from their formulas."""

import numpy as np
import scipy.optimize


def softmax(x, mask):
    e = np.where(mask, np.exp(x - x[mask].max()), 0)
    return e / e.sum()


def distributions(scores, labels, where, target_where, temperature, target_temperature):
    """(p, t) of every query with target mass."""
    return [
        (softmax(s / temperature, w), softmax(y / target_temperature, m & w))
        for s, y, w, m in zip(scores, labels, where, target_where, strict=True)
        if (m & w).any()
    ]


def listnet_kl(scores, labels, where, target_where, *temperatures):
    pairs = distributions(scores, labels, where, target_where, *temperatures)
    return np.mean([np.sum(t[t > 0] * np.log(t[t > 0] / p[t > 0])) for p, t in pairs])


def infonce(scores, labels, where, target_where, *temperatures):
    pairs = distributions(scores, labels, where, target_where, *temperatures)
    # The mode of t is the top grade, and argmax takes the first.
    return np.mean([-np.log(p[np.argmax(t)]) for p, t in pairs])


def level_masses(labels, mass, levels):
    return np.array([mass[labels == level].sum() for level in levels])


def linear_program(a, b, levels, order):
    """Least cost over all plans with marginals a and b: no use is made of the axis being 1-D."""
    size = len(levels)
    cost = np.abs(np.subtract.outer(levels, levels)) ** order
    marginals = [np.kron(np.eye(size), np.ones(size)), np.kron(np.ones(size), np.eye(size))]
    # The last marginal follows from the others; rounding would make it contradict them.
    solution = scipy.optimize.linprog(
        cost.ravel(), A_eq=np.concatenate(marginals)[:-1], b_eq=np.concatenate([a, b])[:-1]
    )
    assert solution.success, solution.message
    return solution.fun


def cdf_distance(a, b, levels):
    return np.sum(np.diff(levels) * np.abs(np.cumsum(a) - np.cumsum(b))[:-1])


def wasserstein(scores, labels, where, target_where, *temperatures, levels, order):
    costs = []
    for s, y, w, m in zip(scores, labels, where, target_where, strict=True):
        for p, t in distributions(s[None], y[None], w[None], m[None], *temperatures):
            a, b = level_masses(y, p, levels), level_masses(y, t, levels)
            one_d = order == 1
            costs.append(
                cdf_distance(a, b, levels) if one_d else linear_program(a, b, levels, order)
            )
    return np.mean(costs)


def psd_root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def gaussian_wasserstein(scores, labels, where, target_where, *temperatures):
    """|m_p - m_t|^2 + tr(C_p + C_t - 2 (C_p^1/2 C_t C_p^1/2)^1/2) on [P, P] covariances."""
    pairs = distributions(scores, labels, where, target_where, *temperatures)
    p, t = (np.array(rows) for rows in zip(*pairs, strict=True))
    f = 1 / (len(p) - 1) if len(p) > 1 else 1
    cov_p, cov_t = (f * (x - x.mean(0)).T @ (x - x.mean(0)) for x in (p, t))
    cross = psd_root(psd_root(cov_p) @ cov_t @ psd_root(cov_p))
    return np.sum((p.mean(0) - t.mean(0)) ** 2) + np.trace(cov_p + cov_t - 2 * cross)
