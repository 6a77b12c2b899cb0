"""Figures of a bridge, from arrays; nothing here trains, samples or touches pyplot."""

from d2ejax.plotting.comparison import Panel as Panel
from d2ejax.plotting.comparison import comparison as comparison
from d2ejax.plotting.curves import training_curves as training_curves
from d2ejax.plotting.drifts import drift_field as drift_field
from d2ejax.plotting.graphs import graph as graph
from d2ejax.plotting.images import morphs as morphs
from d2ejax.plotting.images import translations as translations
from d2ejax.plotting.motion import animation as animation
from d2ejax.plotting.overview import overview as overview
from d2ejax.plotting.ranking import Ranking as Ranking
from d2ejax.plotting.ranking import ranking as ranking
from d2ejax.plotting.snapshots import snapshots as snapshots
from d2ejax.plotting.style import save as save
from d2ejax.plotting.sweeps import Outcome as Outcome
from d2ejax.plotting.sweeps import sweep as sweep
from d2ejax.plotting.transport import coupling as coupling
from d2ejax.plotting.transport import marginals as marginals
from d2ejax.plotting.transport import sample_paths as sample_paths
