"""Endpoints of a bridge: what is known of each marginal."""

from d2ejax.endpoints.base import Endpoint as Endpoint
from d2ejax.endpoints.base import restrict as restrict
from d2ejax.endpoints.checkerboard import checkerboard as checkerboard
from d2ejax.endpoints.curves import s_curve as s_curve
from d2ejax.endpoints.curves import swiss_roll as swiss_roll
from d2ejax.endpoints.curves import two_circles as two_circles
from d2ejax.endpoints.curves import two_moons as two_moons
from d2ejax.endpoints.mixtures import cross as cross
from d2ejax.endpoints.mixtures import eight_gaussians as eight_gaussians
from d2ejax.endpoints.mixtures import gaussian as gaussian
from d2ejax.endpoints.mixtures import gaussian_mixture as gaussian_mixture
from d2ejax.endpoints.mixtures import ring as ring
from d2ejax.endpoints.registry import ENDPOINTS as ENDPOINTS
from d2ejax.endpoints.registry import make_endpoint as make_endpoint
