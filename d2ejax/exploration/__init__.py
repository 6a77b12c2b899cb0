"""Where off-policy paths come from: a replay buffer and the chains that refresh it."""

from d2ejax.exploration import behaviour as behaviour
from d2ejax.exploration import langevin as langevin
from d2ejax.exploration import particles as particles
from d2ejax.exploration import replay_buffer as replay_buffer
from d2ejax.exploration.langevin import refresh as refresh
from d2ejax.exploration.particles import Particles as Particles
from d2ejax.exploration.replay_buffer import ReplayBuffer as ReplayBuffer
