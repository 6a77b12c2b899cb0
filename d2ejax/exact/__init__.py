"""Exact Schrödinger bridges, in float64 NumPy on the host: what trained ones are held to."""

from d2ejax.exact.base import ExactBridge as ExactBridge
from d2ejax.exact.gaussian import AffineKernels as AffineKernels
from d2ejax.exact.gaussian import GaussianBridge as GaussianBridge
from d2ejax.exact.gaussian import gaussian_bridge as gaussian_bridge
from d2ejax.exact.gaussian_iterates import IPFIterates as IPFIterates
from d2ejax.exact.gaussian_iterates import gaussian_ipf as gaussian_ipf
from d2ejax.exact.gaussian_laws import AffineMap as AffineMap
from d2ejax.exact.gaussian_laws import GaussianPlan as GaussianPlan
from d2ejax.exact.grid import grid_bridge as grid_bridge
from d2ejax.exact.limit import MatchedChain as MatchedChain
from d2ejax.exact.limit import k_step_limit as k_step_limit
from d2ejax.exact.mixture_bridges import MixtureBridge as MixtureBridge
from d2ejax.exact.mixture_bridges import PlanBridge as PlanBridge
from d2ejax.exact.mixture_bridges import mixture_bridge as mixture_bridge
from d2ejax.exact.mixture_bridges import plan_bridge as plan_bridge
from d2ejax.exact.mixtures import Mixture as Mixture
from d2ejax.exact.mixtures import Posterior as Posterior
