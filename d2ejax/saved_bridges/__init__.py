"""Trained bridges on disk: a folder of arrays and array programs that any JAX code can run."""

from d2ejax.saved_bridges.folder import FOLDER as FOLDER
from d2ejax.saved_bridges.loading import load as load
from d2ejax.saved_bridges.saving import save as save
from d2ejax.saved_bridges.trained import Paths as Paths
from d2ejax.saved_bridges.trained import TrainedBridge as TrainedBridge
