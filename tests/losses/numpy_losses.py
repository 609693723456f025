"""The losses once more, row by row in NumPy float64, written from their formulas."""

import jax
import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats


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


def infonce(scores, labels, where, target_where, temperature, _):
    values = []
    for s, y, w, m in zip(scores, labels, where, target_where, strict=True):
        usable = np.flatnonzero(w & m)
        if len(usable):
            equals = usable[y[usable] == y[usable].max()]
            rest = w & ~np.isin(np.arange(len(s)), equals[1:])
            values.append(-np.log(softmax(s / temperature, rest)[equals[0]]))
    return np.mean(values)


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


def wasserstein(scores, labels, where, target_where, *temperatures, levels, order, positions=None):
    points = positions or levels
    costs = []
    for s, y, w, m in zip(scores, labels, where, target_where, strict=True):
        for p, t in distributions(s[None], y[None], w[None], m[None], *temperatures):
            a, b = level_masses(y, p, levels), level_masses(y, t, levels)
            one_d = order == 1
            costs.append(
                cdf_distance(a, b, points) if one_d else linear_program(a, b, points, order)
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


def gaussian_paired(scores, labels, where, target_where, *temperatures):
    """The Gaussian distance with each row at its own query: its best case for tr A."""
    pairs = distributions(scores, labels, where, target_where, *temperatures)
    d = np.array([p - t for p, t in pairs])
    f = 1 / (len(d) - 1) if len(d) > 1 else 1
    return np.sum(d.mean(0) ** 2) + f * np.sum((d - d.mean(0)) ** 2)


def entropic_cost(a, b, cost, epsilon, iterations=20_000):
    """min <plan, cost> + epsilon KL(plan | a x b), by alternating on the dual potentials."""
    cost, (a, b) = cost[np.ix_(a > 0, b > 0)], (a[a > 0], b[b > 0])
    f, g = np.zeros(len(a)), np.zeros(len(b))
    for _ in range(iterations):
        g = -epsilon * scipy.special.logsumexp((f[:, None] - cost) / epsilon, axis=0, b=a[:, None])
        f, old = -epsilon * scipy.special.logsumexp((g - cost) / epsilon, axis=1, b=b), f
        if np.abs(f - old).max() < 1e-14:
            break
    return f @ a + g @ b


def sinkhorn_divergence(a, b, cost, epsilon):
    cross, *own = (entropic_cost(x, y, cost, epsilon) for x, y in ((a, b), (a, a), (b, b)))
    return cross - sum(own) / 2


def sinkhorn(
    scores, labels, where, target_where, *temperatures, epsilon, levels=None, positions=None,
    order=1, cost="grade", passages=None, **_,
):  # fmt: skip
    values = []
    for s, y, w, m in zip(scores, labels, where, target_where, strict=True):
        for p, t in distributions(s[None], y[None], w[None], m[None], *temperatures):
            if cost == "grade":
                x = positions or levels
                costs = np.abs(np.subtract.outer(x, x)) ** order
                p, t = level_masses(y, p, levels), level_masses(y, t, levels)
            else:
                unit = passages / np.linalg.norm(passages, axis=1, keepdims=True)
                costs = 1 - unit @ unit.T
            values.append(sinkhorn_divergence(p, t, costs, epsilon))
    return np.mean(values)


def counted_rows(scores, labels, where, target_where, temperature):
    """(s, y, m) of every query with target mass, over its items: s scaled, m may carry mass."""
    return [
        (s[w] / temperature, y[w], m[w])
        for s, y, w, m in zip(scores, labels, where, target_where, strict=True)
        if (m & w).any()
    ]


def pairs(y, m):
    return [(i, j) for i in range(len(y)) for j in range(len(y)) if m[i] and y[i] > y[j]]


def ranknet(scores, labels, where, target_where, temperature, _):
    rows = counted_rows(scores, labels, where, target_where, temperature)
    losses = [[np.log1p(np.exp(s[j] - s[i])) for i, j in pairs(y, m)] for s, y, m in rows]
    return np.mean([np.mean(row) if row else 0 for row in losses])


def dcg(gains, ranks):
    return np.sum(gains / np.log2(1 + ranks))


def linear_gains(y):
    return y - min(0, y.min())


def ideal(gains):
    return dcg(np.sort(gains)[::-1], np.arange(1, len(gains) + 1))


def lambdarank(scores, labels, where, target_where, temperature, _):
    values = []
    for s, y, m in counted_rows(scores, labels, where, target_where, temperature):
        gains, ranks = linear_gains(y), scipy.stats.rankdata(-s)
        value = 0
        for i, j in pairs(y, m):
            swapped = ranks.copy()
            swapped[[i, j]] = ranks[[j, i]]
            change = np.abs(dcg(gains, swapped) - dcg(gains, ranks)) / ideal(gains)
            value += change * np.log1p(np.exp(s[j] - s[i]))
        values.append(value)
    return np.mean(values)


def approx_ndcg(scores, labels, where, target_where, temperature, _):
    values = []
    for s, y, m in counted_rows(scores, labels, where, target_where, temperature):
        gains = np.where(m, linear_gains(y), 0)
        above = 1 / (1 + np.exp(s[:, None] - s))
        ranks = 1 + above.sum(1) - 0.5
        values.append(1 - dcg(gains, ranks) / ideal(gains) if gains.any() else 0)
    return np.mean(values)


def listmle(scores, labels, where, target_where, temperature, _):
    values = []
    for s, y, m in counted_rows(scores, labels, where, target_where, temperature):
        drawn = np.flatnonzero(m & (y > y.min()))
        terms = [np.log(np.sum(np.exp(s[y <= y[i]]))) - s[i] for i in drawn]
        values.append(np.mean(terms) if terms else 0)
    return np.mean(values)


def soft_ranks(x, a, y, b, epsilon, iterations):
    """Mean target of each point, after `iterations` updates of the targets' and points' duals."""
    y, b = y[b > 0], b[b > 0]
    cost = (x[:, None] - y) ** 2
    f = np.zeros(len(x))
    for _ in range(iterations):
        g = epsilon * np.log(b) - epsilon * scipy.special.logsumexp(
            (f[:, None] - cost) / epsilon, axis=0
        )
        f = epsilon * np.log(a) - epsilon * scipy.special.logsumexp((g - cost) / epsilon, axis=1)
    return np.exp((f[:, None] + g - cost) / epsilon) @ y / a


def soft_rank(
    scores, labels, where, target_where, temperature, _, levels, positions=None,
    epsilon=0.03, iterations=50,
):  # fmt: skip
    points = np.array(positions or levels)
    points = (points - points[0]) / (points[-1] - points[0])
    values = []
    for s, y, m in counted_rows(scores, labels, where, target_where, temperature):
        x = 1 / (1 + np.exp(s.mean() - s))
        a, b = np.full(len(s), 1 / len(s)), np.array([np.mean(y == level) for level in levels])
        error = (
            soft_ranks(x, a, points, b, epsilon, iterations) - points[np.searchsorted(levels, y)]
        )
        values.append(np.mean(error[m] ** 2))
    return np.mean(values)


def infonce_sampled(scores, labels, where, target_where, temperature, _, positive_grade, keys):
    values = []
    for s, y, w, m, key in zip(scores, labels, where, target_where, keys, strict=True):
        positives = np.flatnonzero(w & m & (y >= positive_grade))
        if len(positives):
            drawn = positives[int(jax.random.randint(key, (), 0, len(positives), np.int32))]
            rest = w & ~np.isin(np.arange(len(s)), positives)
            rest[drawn] = True
            values.append(-np.log(softmax(s / temperature, rest)[drawn]))
    return np.mean(values)


def margin_mse(scores, labels, where, target_where, temperature, target_temperature):
    values = []
    for s, y, m in counted_rows(scores, labels, where, target_where, temperature):
        s, y = s[m], y[m] / target_temperature
        top = np.argmax(y)
        errors = (s[top] - np.delete(s, top)) - (y[top] - np.delete(y, top))
        values.append(np.mean(errors**2) if len(errors) else 0)
    return np.mean(values)
