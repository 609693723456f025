"""The parts of OTT-JAX that the losses use, imported without the warning of its dependency.

OTT imports jaxopt, which announces its retirement; nothing a user of this package can act on.
"""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="JAXopt is no longer", category=DeprecationWarning)
    from ott.geometry.costs import PNormP
    from ott.geometry.geometry import Geometry
    from ott.geometry.pointcloud import PointCloud
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.sinkhorn import Sinkhorn
    from ott.solvers.linear.univariate import quantile_solver
    from ott.tools.sinkhorn_divergence import sinkhorn_divergence

__all__ = [
    "Geometry",
    "LinearProblem",
    "PNormP",
    "PointCloud",
    "Sinkhorn",
    "quantile_solver",
    "sinkhorn_divergence",
]
