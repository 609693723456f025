"""The further keywords with which tests call each loss."""

import jax

from synrank_jax.losses import LOSSES

LEVELS = (-1.0, 0.0, 1.0, 2.0, 3.0)
UNEVEN = (-3.0, 0.0, 0.5, 2.0, 3.0)


def keywords(name, Q, positive_grade=3.0):
    """Of a pool of Q queries; grade 3 leaves `infonce_sampled` no choice of a positive."""
    keys = {"keys": jax.random.split(jax.random.key(1), Q), "positive_grade": positive_grade}
    own_keywords = {
        "wasserstein": {"levels": LEVELS, "order": 1},
        "sinkhorn": {"levels": LEVELS, "epsilon": 0.5},
        "soft_rank": {"levels": LEVELS},
        "infonce_sampled": keys,
    }
    return ({name: {} for name in LOSSES} | own_keywords)[name]
