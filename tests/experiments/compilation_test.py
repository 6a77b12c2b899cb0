"""Everything is compiled by the end of the first IPF iteration."""

import time

import jax
import pytest

from d2ejax import parallel
from experiments import build, loop
from experiments.judge import Judge
from experiments.progress import Progress
from tests.experiments import small

_COMPILED = "/jax/core/compile/backend_compile_duration"


class Compilations(Progress):
    """How many programs had been compiled at the end of each dispatch."""

    def __init__(self, total_steps):
        super().__init__(total_steps)
        self.count, self.at_steps = 0, {}

    def listen(self, event, duration, **_):
        self.count += event == _COMPILED

    def update(self, step, phase, metrics, steps_per_second):
        self.at_steps[step] = self.count


@pytest.mark.parametrize(
    ("target_loss", "optimiser"), [("semi_discrete", "muon"), ("log_variance", "adamw")]
)
def test_nothing_is_compiled_after_the_first_iteration(target_loss, optimiser, tmp_path):
    settings = {"ipf.iterations": 3, "ipf.forward_steps": 5, "ipf.forward_loss": target_loss}
    settings["optimiser.name"] = optimiser
    config = small.gaussians(settings)
    experiment = build.build(config)
    trainer = parallel.data_parallel(experiment.algorithm)
    first = experiment.phase_of(0)[1]
    if target_loss == "log_variance":
        first = experiment.phase_of(first)[1]
    # Dispatches of many lengths, cut by phases and checkpoints.
    plan = loop.Plan(experiment.total_steps, experiment.phase_of, 2, 7, 100)
    progress = Compilations(plan.total_steps)
    jax.monitoring.register_event_duration_secs_listener(progress.listen)
    try:
        loop.train(
            trainer,
            plan,
            key=jax.random.key(0),
            saved=None,
            directory=tmp_path,
            keep=2,
            progress=progress,
            probe=Judge(experiment).probe,
            process_start=time.perf_counter(),
        )
    finally:
        jax.monitoring.unregister_event_duration_listener(progress.listen)
    assert progress.at_steps[first] > 0
    later = {step: n for step, n in progress.at_steps.items() if step >= first}
    assert len(later) > 4
    assert set(later.values()) == {progress.at_steps[first]}
