"""What `benchmarks.samplers` compares, on what; a method or a problem joins by one line."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks import bridge_methods

Spend = Callable[[float], dict[str, Any]]


class Problem(NamedTuple):
    """Two ends, of which the target is known to training by its energy.

    Attributes:
        config: Name of a configuration file.
        overrides: Values of dotted keys.
    """

    config: str
    overrides: Mapping[str, Any] = MappingProxyType({})


class Method(NamedTuple):
    """One line of a table.

    Attributes:
        overrides: Values of dotted keys.
        spend: Maps a number of gradient steps to the values of keys that spend them.
    """

    overrides: Mapping[str, Any]
    spend: Spend


def _dotted(overrides: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("__", "."): value for key, value in overrides.items()}


def _target(name: str, dim: int, scale: float, step_size: float, **overrides: Any) -> Problem:
    """A target for samplers, from next to the origin.

    Args:
        name: Of the endpoint.
        dim: Its dimension.
        scale: About its deviation: of the reference, and of what particles restart from.
        step_size: Of the particles' Langevin steps.
        **overrides: Values of further keys, `__` for the dot.
    """
    values = {
        "target.name": name,
        "source.options.dim": dim,
        "reference.sigma": scale,
        "exploration.restart_std": scale,
        "exploration.refresh_step_size": step_size,
        "grid.num_steps": 40,
        "network.width": 64 if dim < 16 else 128,
        "network.energy_feature": True,
        # That the noise of the estimates is not all that errors of log Z consist of.
        "evaluate.num_paths": 50_000,
        **_dotted(overrides),
    }
    return Problem("sampler", values)


TARGETS: dict[str, Problem] = {
    "mixture-25": _target("grid_mixture", 2, 7.0, 0.1),
    "mixture-40": _target("random_mixture", 2, 25.0, 0.4),
    "funnel-10": _target("funnel", 10, 2.0, 0.01),
    "student-mixture": _target("student_mixture", 2, 8.0, 0.2),
    "MW-5": _target("double_wells", 5, 2.0, 0.005, evaluate__sinkhorn=True),
    "many-well-32": _target("many_well", 32, 1.5, 0.02),
    "phi4": _target("phi4", 64, 0.6, 0.01),
    "logistic": _target("logistic_regression", 31, 1.0, 0.005),
    "DW-4": Problem("dw4"),
    "LJ-13": Problem(
        "dw4",
        {
            "source.options.dim": 36,
            "target.name": "lennard_jones",
            # Published samplers count every pair twice.
            "target.options.epsilon": 2.0,
            "reference.sigma": 0.8,
            # 156 messages in a round, where DW-4 has 12.
            "batch_size": 16,
            "evaluate.num_paths": 4000,
            "evaluate.num_samples": 1000,
            "exploration.restart_std": 0.8,
            "exploration.refresh_step_size": 0.0002,
        },
    ),
}
"""For samplers that start next to one point."""

UNSAMPLED = ("phi4", "logistic", "DW-4", "LJ-13")
"""Targets without samples of their own."""


def _mixtures(dim: int) -> Problem:
    return Problem(
        "mixtures",
        {
            "pair.options.dim": dim,
            "network.width": 64 if dim < 16 else 128,
            # As in benchmarks.exact_bridges.
            "exploration.refresh_step_size": round(0.05 * (2 / dim) ** (1 / 3), 5),
            "exploration.restart_std": round(3.0 * (2 / dim) ** 0.5, 4),
        },
    )


BRIDGES: dict[str, Problem] = {
    "Gauss-ring": Problem("gaussian_to_ring"),
    "moons-ring": Problem("two_moons"),
    # With the energy's gradient along the paths as well, as the mixtures have it.
    "Gauss-ring with feature": Problem("gaussian_to_ring", {"network.energy_feature": True}),
    "moons-ring with feature": Problem("two_moons", {"network.energy_feature": True}),
    **{f"mixtures-{dim}": _mixtures(dim) for dim in (2, 16, 64)},
}
"""From samples to an energy, with the bridge known exactly."""

PROBLEMS = BRIDGES | TARGETS


def _sampler(loss: str, **overrides: Any) -> Method:
    values = {"method": "sampler", "sampler.loss": loss, **_dotted(overrides)}
    return Method(values, lambda steps: {"sampler.num_steps": max(1, round(steps))})


_ITERATIONS = 20


def _adjoint(method: str, *, learned: bool = False, **overrides: Any) -> Method:
    """An adjoint method; as with ipf, a third of the steps fit the backward process."""

    def spend(steps: float) -> dict[str, Any]:
        stage = 2 / 3 * steps / _ITERATIONS
        corrector = round(stage / 3) if learned else 0
        return {
            "adjoint.iterations": _ITERATIONS,
            "adjoint.forward_steps": max(1, round(stage) - corrector),
            **({"adjoint.corrector_steps": max(1, corrector)} if learned else {}),
            "adjoint.backward_steps": max(1, round(steps / 3)),
        }

    # As many new pairs in a step as a batch has.
    paced = {"adjoint.rollout_every": 4, "adjoint.rollout_size": 512}
    return Method({"method": method, **paced, **_dotted(overrides)}, spend)


_IPF = Method({}, bridge_methods.METHODS["ipf D2E"].spend)

RIVALS: dict[str, Method] = {
    "ipf": _IPF,
    "ipf without refresh": _IPF._replace(overrides={"exploration.refresh_method": "none"}),
    "asbs": _adjoint("asbs", learned=True),
    "asbs semi-discrete": _adjoint("asbs", adjoint__corrector="semi_discrete"),
    "asbs semi-discrete λ": _adjoint(
        "asbs", adjoint__corrector="semi_discrete", adjoint__curvature=20.0
    ),
    # Pairs from particles of the target, as ipf has its paths.
    "asbs semi-discrete λ off-policy": _adjoint(
        "asbs",
        adjoint__corrector="semi_discrete",
        adjoint__curvature=20.0,
        adjoint__off_policy_ratio=0.5,
    ),
    "bms": _adjoint("bms"),
    "bms η = 10": _adjoint("bms", adjoint__damping=10.0),
}
"""From samples to an energy."""

SAMPLERS: dict[str, Method] = {
    "log-variance": _sampler("log_variance"),
    "TB": _sampler("trajectory_balance"),
    "SubTB": _sampler("subtrajectory_balance"),
    "path KL": _sampler("path_kl"),
    "path KL last 10": _sampler("path_kl", sampler__tracked_steps=10),
    "adjoint sampling": _adjoint("adjoint_sampling"),
    "bms": RIVALS["bms"],
}
"""From next to one point."""


def methods(problem: str) -> dict[str, Method]:
    """The methods that are compared on a problem."""
    return RIVALS if problem in BRIDGES else SAMPLERS
