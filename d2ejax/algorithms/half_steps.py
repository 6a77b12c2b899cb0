"""One half-step of iterative proportional fitting, in either direction of time.

A half-step trains one process towards its *goal*, the end that it pins, while the opposite
process stands still. Which loss it uses follows from what that end offers:

- samples: "likelihood" of paths that the opposite process draws from them, or
  "bridge_matching" on the reference's bridges between the ends of such paths; with a fixed
  diffusion coefficient also "mean_matching", "drift_matching" or "sde_likelihood" of the paths
  as they were drawn, which read off the score of the opposite process,
- energy: "log_variance" or "trajectory_balance" of the log path ratio, on off-policy paths,
- energy: "semi_discrete", where the reference and a potential in closed form, averaged over
  anchors of the other end, take the place of the opposite process; "hybrid" is the same while
  enough anchors count, and "log_variance" where too few do.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import optax

from d2ejax.endpoints.base import Endpoint
from d2ejax.exploration.particles import Particles
from d2ejax.exploration.replay_buffer import ReplayBuffer
from d2ejax.kernels import Process
from d2ejax.non_finite import SHARES
from d2ejax.references import Reference
from d2ejax.time_grids import TimeGrid
from d2ejax.typing import Array, Params

Loss = Literal[
    "likelihood",
    "bridge_matching",
    "mean_matching",
    "drift_matching",
    "sde_likelihood",
    "log_variance",
    "trajectory_balance",
    "semi_discrete",
    "hybrid",
]
LOSSES: tuple[Loss, ...] = get_args(Loss)

Coupling = Literal["reference", "independent"]
COUPLINGS: tuple[Coupling, ...] = ("reference", "independent")
Divergence = Literal["exact", "hutchinson"]
DIVERGENCES: tuple[Divergence, ...] = ("exact", "hutchinson")
WITH_FIXED_VARIANCE: tuple[Loss, ...] = ("mean_matching", "drift_matching", "sde_likelihood")
"""Losses of paths as the opposite process drew them, whose kernels keep the reference's
variance: nothing else would be trained, and the score would not be read off rightly."""
FROM_SAMPLES: tuple[Loss, ...] = ("likelihood", "bridge_matching", *WITH_FIXED_VARIANCE)
"""Losses that need samples of the pinned end; all others need its energy."""
WITH_POTENTIAL: tuple[Loss, ...] = ("trajectory_balance", "semi_discrete", "hybrid")
"""Losses that train the start's potential beside the drift."""
WITH_ANCHORS: tuple[Loss, ...] = ("semi_discrete", "hybrid")
"""Losses that average over anchors of the start."""


ACCEPTANCE = {0: "acceptance_source", -1: "acceptance_target"}
METRICS = ("anchors", "closed_form", *SHARES, *ACCEPTANCE.values())
"""What a half-step measures, NaN where it does not apply: the mean effective number of anchors
at the paths' ends, the share of devices and steps where the half-bridge in closed form stood
opposite, the shares of paths with an undefined end and with one without mass, and the
acceptance rate of each end's refresh."""


def losses_by_access(source: str, target: str) -> tuple[Loss, Loss]:
    """The losses that the two ends call for, of the backward and of the forward half-step.

    Samples of the pinned end call for bridge matching, which cannot drift off the reference
    and is less noisy than the likelihood. An energy calls for the semi-discrete half-step,
    which one of the two may be: the forward one, where both ends are energies.

    Args:
        source: What training sees of the source, "samples" or "energy".
        target: The same of the target.

    Returns:
        The loss of the backward half-step and that of the forward one.
    """
    if target == "energy":
        return ("bridge_matching" if source == "samples" else "log_variance"), "semi_discrete"
    return ("bridge_matching" if source == "samples" else "semi_discrete"), "bridge_matching"


class HalfStep(NamedTuple):
    """Everything fixed about one half-step. Schedules map its own gradient steps to a scalar.

    Attributes:
        loss: Which loss it trains by.
        trained: The process that it trains.
        opposite: The process that stands still.
        reference: The reference on the grid.
        law: The reference in continuous time.
        grid: The time grid.
        start: What the end that the trained process starts from offers to training.
        goal: What the pinned end offers to training.
        potential: Network of the start's potential, `(params, x) -> scalar`.
        particles: How the two ends are explored; None for an end that is sampled.
        batch_size: Paths scored in one gradient step, on each device.
        num_paths: Paths that share their start, N.
        num_anchors: Samples of the start behind a semi-discrete potential, M.
        min_anchors: Effective anchors, on average over the goals of a gradient step, under
            which a hybrid half-step turns to the learned opposite process.
        reanchor: Whether a likelihood half-step keeps only the ends of the opposite process's
            paths and joins them by the reference's pinned bridge, as bridge matching always
            does, and losses with a fixed variance never.
        first_coupling: Of which ends bridge matching makes its first half-step: "reference",
            those of the opposite process as it begins, which for IPF is the reference or a
            bridge near to the one sought (see `kernels.on_top`), or "independent", samples of
            both, as iterative Markovian fitting asks for.
        divergence: How a half-step of the SDE likelihood finds the divergence of its drift:
            "exact", by a derivative along each axis, or "hutchinson", along one random sign
            vector for each step.
        cached_batches: How many batches of the opposite process's paths a half-step of samples
            keeps to draw its own from; 0 to simulate each anew.
        cache_every: Own gradient steps after which all of those are simulated anew. Divides the
            gradient steps of a half-step, lest one begin with what the opposite process was.
        off_policy_ratio: Schedule of the share of groups that start off-policy, in [0, 1].
        reuse_path: Whether the path that found an off-policy start joins its group.
        inverse_temperature: Schedule of the factor of the goal's energy.
        add_ends: Whether the ends of trained paths join the goal's particles.
    """

    loss: Loss
    trained: Process
    opposite: Process
    reference: Process
    law: Reference
    grid: TimeGrid
    start: Endpoint
    goal: Endpoint
    potential: Callable[[Params, Array], Array]
    particles: tuple[Particles | None, Particles | None]
    batch_size: int = 256
    num_paths: int = 8
    num_anchors: int = 1024
    min_anchors: float = 4.0
    reanchor: bool = True
    first_coupling: Coupling = "reference"
    divergence: Divergence = "exact"
    cached_batches: int = 0
    cache_every: int = 1
    off_policy_ratio: optax.Schedule = optax.constant_schedule(0.5)
    reuse_path: bool = True
    inverse_temperature: optax.Schedule = optax.constant_schedule(1.0)
    add_ends: bool = True

    @property
    def goal_end(self) -> int:
        """Where a path has its goal: 0 for a backward half-step, -1 for a forward one."""
        return 0 if self.trained.backward else -1

    @property
    def start_end(self) -> int:
        """Where a path has its start: -1 for a backward half-step, 0 for a forward one."""
        return -1 if self.trained.backward else 0


Buffers = tuple[ReplayBuffer | None, ReplayBuffer | None]
"""Particles of the source and of the target; None for an end that is sampled."""

Caches = tuple[Array | None, Array | None]
"""Paths for the backward and for the forward half-step; None where none are kept."""


class Inputs(NamedTuple):
    """What a half-step reads in one gradient step.

    Attributes:
        params: The trained parameters, to draw paths by; their gradient comes from the loss.
        average: Their moving average.
        opposite: Parameters of the opposite process.
        buffers: The particles.
        step: The number of gradient steps that this direction has had so far.
        opposite_step: The number that the opposite process has had.
        cache: Of paths of the opposite process; None where each batch is simulated anew.
    """

    params: Params
    average: Params
    opposite: Params
    buffers: Buffers
    step: Array
    opposite_step: Array
    cache: Array | None = None


Objective = Callable[[Params], tuple[Array, dict[str, Array]]]
