"""Metrics: functions of arrays, in float64 on the host."""

from d2ejax.metrics.base import Estimate as Estimate
from d2ejax.metrics.bridge import TerminalKL as TerminalKL
from d2ejax.metrics.bridge import bridge_gap as bridge_gap
from d2ejax.metrics.bridge import drift_error as drift_error
from d2ejax.metrics.bridge import path_kl as path_kl
from d2ejax.metrics.bridge import terminal_kl as terminal_kl
from d2ejax.metrics.distances import energy_distance as energy_distance
from d2ejax.metrics.distances import mmd_squared as mmd_squared
from d2ejax.metrics.distances import sliced_w2_squared as sliced_w2_squared
from d2ejax.metrics.distances import transport_cost as transport_cost
from d2ejax.metrics.distances import w2_squared as w2_squared
from d2ejax.metrics.distances import w2_squared_floor as w2_squared_floor
from d2ejax.metrics.evidence import effective_sample_size as effective_sample_size
from d2ejax.metrics.evidence import log_weights as log_weights
from d2ejax.metrics.evidence import log_z_importance as log_z_importance
from d2ejax.metrics.evidence import log_z_lower as log_z_lower
from d2ejax.metrics.evidence import log_z_upper as log_z_upper
from d2ejax.metrics.gaussian import fitted_kl as fitted_kl
from d2ejax.metrics.gaussian import moment_error as moment_error
from d2ejax.metrics.modes import mode_coverage as mode_coverage
from d2ejax.metrics.modes import mode_weights as mode_weights
from d2ejax.metrics.plans import bw_uvp as bw_uvp
from d2ejax.metrics.plans import conditional_bw_uvp as conditional_bw_uvp
