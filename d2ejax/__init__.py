"""Data-to-energy Schrödinger bridges in JAX, held against exact solutions."""

from importlib.metadata import PackageNotFoundError as _PackageNotFoundError
from importlib.metadata import version as _version

from d2ejax import circuits as circuits
from d2ejax import couplings as couplings
from d2ejax import endpoints as endpoints
from d2ejax import exact as exact
from d2ejax import exploration as exploration
from d2ejax import flows as flows
from d2ejax import losses as losses
from d2ejax import metrics as metrics
from d2ejax import pairs as pairs
from d2ejax import parallel as parallel
from d2ejax import references as references
from d2ejax import rollouts as rollouts
from d2ejax import saved_bridges as saved_bridges
from d2ejax import snapshots as snapshots
from d2ejax import time_grids as time_grids
from d2ejax.algorithms.adjoint import AdjointStages as AdjointStages
from d2ejax.algorithms.adjoint import adjoint_sampler as adjoint_sampler
from d2ejax.algorithms.adjoint_objective import AdjointSampler as AdjointSampler
from d2ejax.algorithms.base import Algorithm as Algorithm
from d2ejax.algorithms.diffusion_model import DiffusionModel as DiffusionModel
from d2ejax.algorithms.diffusion_model import diffusion_model as diffusion_model
from d2ejax.algorithms.enot import Enot as Enot
from d2ejax.algorithms.enot import enot as enot
from d2ejax.algorithms.fine_tuning import FineTuning as FineTuning
from d2ejax.algorithms.fine_tuning import fine_tuning as fine_tuning
from d2ejax.algorithms.half_steps import HalfStep as HalfStep
from d2ejax.algorithms.half_steps import losses_by_access as losses_by_access
from d2ejax.algorithms.ipf import Schedule as Schedule
from d2ejax.algorithms.ipf import ipf as ipf
from d2ejax.algorithms.ipf import schedule as schedule
from d2ejax.algorithms.light import LightPhases as LightPhases
from d2ejax.algorithms.light import fit_potential as fit_potential
from d2ejax.algorithms.light import light_bridge as light_bridge
from d2ejax.algorithms.matching import bridge_regression as bridge_regression
from d2ejax.algorithms.matching import flow_alone as flow_alone
from d2ejax.algorithms.matching import flow_and_score as flow_and_score
from d2ejax.algorithms.matching import matching as matching
from d2ejax.algorithms.matching import stratified_times as stratified_times
from d2ejax.algorithms.penalties import penalised as penalised
from d2ejax.algorithms.samplers import Sampler as Sampler
from d2ejax.algorithms.samplers import diffusion_sampler as diffusion_sampler
from d2ejax.endpoints.base import Endpoint as Endpoint
from d2ejax.endpoints.latent import class_reward as class_reward
from d2ejax.endpoints.latent import latent_posterior as latent_posterior
from d2ejax.endpoints.particle_systems import from_positions as from_positions
from d2ejax.endpoints.particle_systems import to_positions as to_positions
from d2ejax.endpoints.registry import make_endpoint as make_endpoint
from d2ejax.equivariant_networks import equivariant_network as equivariant_network
from d2ejax.flows import probability_flow as probability_flow
from d2ejax.graph_networks import edge_strengths as edge_strengths
from d2ejax.graph_networks import graph_network as graph_network
from d2ejax.graph_networks import group_lasso as group_lasso
from d2ejax.kernels import Process as Process
from d2ejax.kernels import on_top as on_top
from d2ejax.kernels import process as process
from d2ejax.kernels import reference_process as reference_process
from d2ejax.light import LightPotential as LightPotential
from d2ejax.losses import log_path_ratio as log_path_ratio
from d2ejax.losses import log_variance_loss as log_variance_loss
from d2ejax.losses import trajectory_balance_loss as trajectory_balance_loss
from d2ejax.losses import trajectory_likelihood_loss as trajectory_likelihood_loss
from d2ejax.networks import drift_network as drift_network
from d2ejax.networks import potential_network as potential_network
from d2ejax.pairs import Pair as Pair
from d2ejax.pairs import make_pair as make_pair
from d2ejax.references import Reference as Reference
from d2ejax.references import brownian as brownian
from d2ejax.references import ornstein_uhlenbeck as ornstein_uhlenbeck
from d2ejax.references import variance_exploding as variance_exploding
from d2ejax.references import variance_preserving as variance_preserving
from d2ejax.rollouts import log_density as log_density
from d2ejax.rollouts import simulate as simulate
from d2ejax.saved_bridges import TrainedBridge as TrainedBridge
from d2ejax.saved_bridges import load as load
from d2ejax.sequential_monte_carlo import sequential_monte_carlo as sequential_monte_carlo
from d2ejax.snapshots import Snapshots as Snapshots
from d2ejax.snapshots import make_snapshots as make_snapshots
from d2ejax.time_grids import TimeGrid as TimeGrid

try:
    __version__ = _version("d2ejax")
except _PackageNotFoundError:  # A source tree that is not installed.
    __version__ = "0+unknown"
