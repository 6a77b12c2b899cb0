"""Losses as pure functions of arrays already computed, or of callables and a path."""

from d2ejax.losses.adjoint import adjoint_matching_loss as adjoint_matching_loss
from d2ejax.losses.adjoint import carried_back as carried_back
from d2ejax.losses.adjoint import corrector_loss as corrector_loss
from d2ejax.losses.adjoint import lean_adjoint as lean_adjoint
from d2ejax.losses.adjoint import potential_gradient_loss as potential_gradient_loss
from d2ejax.losses.bridge_matching import bridge_matching_loss as bridge_matching_loss
from d2ejax.losses.control import control_loss as control_loss
from d2ejax.losses.flow_matching import conditional_flow as conditional_flow
from d2ejax.losses.flow_matching import conditional_score as conditional_score
from d2ejax.losses.flow_matching import flow_matching_loss as flow_matching_loss
from d2ejax.losses.flow_matching import score_matching_loss as score_matching_loss
from d2ejax.losses.light import light_loss as light_loss
from d2ejax.losses.likelihood import trajectory_likelihood_loss as trajectory_likelihood_loss
from d2ejax.losses.mean_matching import drift_matching_loss as drift_matching_loss
from d2ejax.losses.mean_matching import mean_matching_loss as mean_matching_loss
from d2ejax.losses.mean_matching import reversal_means as reversal_means
from d2ejax.losses.policy_gradient import policy_gradient_loss as policy_gradient_loss
from d2ejax.losses.saddle import discriminator_loss as discriminator_loss
from d2ejax.losses.sde_likelihood import sde_likelihood_loss as sde_likelihood_loss
from d2ejax.losses.semi_discrete import anchor_log_weights as anchor_log_weights
from d2ejax.losses.semi_discrete import effective_anchors as effective_anchors
from d2ejax.losses.semi_discrete import log_potential as log_potential
from d2ejax.losses.semi_discrete import potential_loss as potential_loss
from d2ejax.losses.trajectory_balance import log_path_ratio as log_path_ratio
from d2ejax.losses.trajectory_balance import log_variance_loss as log_variance_loss
from d2ejax.losses.trajectory_balance import (
    subtrajectory_balance_loss as subtrajectory_balance_loss,
)
from d2ejax.losses.trajectory_balance import trajectory_balance_loss as trajectory_balance_loss
