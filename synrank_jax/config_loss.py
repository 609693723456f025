"""The loss section of the configuration: which losses are on, and their options."""

from typing import Literal, Self

from pydantic import model_validator

from synrank_jax.config_section import (
    NonNegativeFloat,
    Number,
    PositiveFloat,
    PositiveInt,
    Section,
)


class LossConfig(Section):
    """Weights of the losses (at least one above 0) and the options they share."""

    wasserstein: NonNegativeFloat = 0.0
    """Weight of optimal transport on the grade axis, per list."""
    sinkhorn: NonNegativeFloat = 0.0
    """Weight of the Sinkhorn divergence, a smooth transport cost, per list."""
    gaussian_wasserstein: NonNegativeFloat = 0.0
    """Weight of the squared 2-Wasserstein distance of Gaussians over the pool (the loss of
    arXiv 2503.23239)."""
    gaussian_paired: NonNegativeFloat = 0.0
    """Weight of the same with every row held at its own query."""
    listnet_kl: NonNegativeFloat = 0.0
    """Weight of the Kullback-Leibler divergence from the target to the predicted distribution."""
    listmle: NonNegativeFloat = 0.0
    """Weight of the Plackett-Luce likelihood of the graded order."""
    ranknet: NonNegativeFloat = 0.0
    """Weight of the logistic loss of pairs in the wrong order."""
    lambdarank: NonNegativeFloat = 0.0
    """Weight of RankNet with pairs weighted by the nDCG they would change."""
    approx_ndcg: NonNegativeFloat = 0.0
    """Weight of a smooth approximation of 1 - nDCG."""
    soft_rank: NonNegativeFloat = 0.0
    """Weight of the squared error of soft ranks."""
    infonce: NonNegativeFloat = 0.0
    """Weight of the cross-entropy of the top-grade passage against everything else in its row."""
    infonce_sampled: NonNegativeFloat = 0.0
    """Weight of InfoNCE with one random positive per query; its other positives are masked."""
    margin_mse: NonNegativeFloat = 0.0
    """Weight of the squared error of score margins against those of the grades."""
    scope: Literal["list", "pool"] = "pool"
    """`list`: a query meets only its own list. `pool`: also the passages of the other lists in
    its loss pool."""
    temperature: PositiveFloat = 0.05
    """Scores are divided by it before the softmax."""
    learn_temperature: bool = False
    """Train the temperature as a weight, starting from `temperature`. It is logged, saved with the
    checkpoint and stated in the exported model card."""
    target_temperature: PositiveFloat = 1.0
    """Grades are divided by it before the softmax that makes the target."""
    in_batch_grade: Number | None = None
    """Grade of in-batch passages in the target softmax. Null: no target mass on them, and on the
    grade axis they stand one level below the lowest grade."""
    grade_positions: tuple[Number, ...] | None = None
    """Where the levels lie on the axis of wasserstein, sinkhorn and soft_rank, ascending: one
    position for each of data.grades and, under `scope: pool`, for the in-batch level if it is none
    of them. Null: at their own values."""
    wasserstein_order: Literal[1, 2] = 1
    """p of the cost |level - level'|^p of wasserstein and sinkhorn."""
    sinkhorn_cost: Literal["grade", "embedding"] = "grade"
    """Ground cost of sinkhorn: distance of grades, or 1 - cosine of passage embeddings (which
    needs `scope: list`)."""
    sinkhorn_epsilon: PositiveFloat = 0.5
    """Entropic regularisation of sinkhorn, in units of its cost. The smaller, the nearer to the
    transport cost and the slower."""
    gaussian_group_size: PositiveInt | None = None
    """Queries per Gaussian; divides the loss pool, so that a large pool does not flatten the
    target. Null: the whole pool is one."""
    gaussian_solver: Literal["svd", "newton_schulz"] = "svd"
    """How gaussian_wasserstein sums singular values; newton_schulz uses matmuls only, for
    accelerators."""
    positive_grade: PositiveInt = 2
    """Lowest grade that infonce_sampled draws its positive from."""

    def weights(self) -> dict[str, float]:
        """The losses that are on, name -> weight."""
        named = {name: getattr(self, name) for name in LOSS_NAMES}
        return {name: weight for name, weight in named.items() if weight > 0}

    def group_size(self) -> int | None:
        """Queries per Gaussian; None: the whole pool, or no Gaussian loss is on."""
        return self.gaussian_group_size if self.weights().keys() & set(BATCH_STATISTICS) else None

    def target_group_size(self) -> int | None:
        """Queries that share a target; None: the whole pool, as for any loss but the Gaussians."""
        return self.gaussian_group_size if self.weights().keys() <= set(BATCH_STATISTICS) else None

    @model_validator(mode="after")
    def _some_loss(self) -> Self:
        if not self.weights():
            raise ValueError(f"give at least one loss a weight above 0: {', '.join(LOSS_NAMES)}")
        return self

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        on = self.weights()
        fixed = [name for name in FIXED_TEMPERATURE if name in on]
        if self.learn_temperature and fixed:
            raise ValueError(
                f"learn_temperature: {fixed[0]} does not support it, its temperature sets how far "
                "ranks are blurred; leave it false, or choose another loss"
            )
        if "sinkhorn" in on and self.sinkhorn_cost == "embedding" and self.scope == "pool":
            raise ValueError(
                "sinkhorn_cost: embedding compares all passages of a row with each other, which "
                "only `scope: list` can afford; set loss.scope=list or loss.sinkhorn_cost=grade"
            )
        statistics = [name for name in BATCH_STATISTICS if name in on]
        if self.scope == "list" and statistics:
            raise ValueError(
                f"{statistics[0]}: its queries share the passages of the pool, which `scope: list` "
                "does not; set loss.scope=pool (loss.gaussian_group_size makes small pools)"
            )
        if self.scope == "list" and self.in_batch_grade is not None:
            raise ValueError(
                f"in_batch_grade {self.in_batch_grade:g}: under `scope: list` there are no "
                "in-batch passages; set it null or loss.scope=pool"
            )
        return self


LOSS_NAMES = (
    "wasserstein",
    "sinkhorn",
    "gaussian_wasserstein",
    "gaussian_paired",
    "listnet_kl",
    "listmle",
    "ranknet",
    "lambdarank",
    "approx_ndcg",
    "soft_rank",
    "infonce",
    "infonce_sampled",
    "margin_mse",
)

BATCH_STATISTICS = ("gaussian_wasserstein", "gaussian_paired")
"""Losses that depend on which queries share the pool; with one query they say little."""

FIXED_TEMPERATURE = ("approx_ndcg", "soft_rank")
"""Losses whose temperature sets how far ranks are blurred and is no scale of the model: learning it
lowers them by hiding errors, or by sharpening until no gradient is left."""
