"""Exact Schrödinger bridges, in float64 NumPy on the host: what trained ones are held to."""

from d2ejax.exact.base import ExactBridge as ExactBridge
from d2ejax.exact.gaussian import AffineKernels as AffineKernels
from d2ejax.exact.gaussian import AffineMap as AffineMap
from d2ejax.exact.gaussian import GaussianBridge as GaussianBridge
from d2ejax.exact.gaussian import GaussianPlan as GaussianPlan
from d2ejax.exact.gaussian import IPFIterates as IPFIterates
from d2ejax.exact.gaussian import gaussian_bridge as gaussian_bridge
from d2ejax.exact.gaussian import gaussian_ipf as gaussian_ipf
from d2ejax.exact.grid import grid_bridge as grid_bridge
from d2ejax.exact.limit import k_step_limit as k_step_limit
