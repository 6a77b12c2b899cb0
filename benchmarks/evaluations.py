"""How often training evaluates a target's energy, for methods that learn from one.

An evaluation is the log-density or its gradient at one point. Where an energy is dear, a
simulation or a large network, this is the cost of a method, whatever its steps cost here. The
counts follow from a configuration; the tests hold them against runs whose energy counts itself.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from experiments import fields
from experiments.relations_of_methods import resolve_corrector

_LEAPFROGS = 5
"""Of one step of HMC in a refresh."""


def energy_evaluations(config: ConfigDict, num_devices: int = 1) -> int:
    """Evaluations of the target's energy in a whole run, those of its evaluation left out.

    Args:
        config: A validated config: of ipf from samples to an energy with the semi-discrete
            half-step, of a sampler or of an adjoint method.
        num_devices: Devices that it runs on, each of which has buffers of its own.

    Raises:
        ValueError: If the method is none of these, or something is set that evaluates more.
    """
    _refuse_more(config)
    counts: dict[str, Callable[[ConfigDict, int], int]] = {
        "ipf": _ipf,
        "sampler": _sampler,
        **dict.fromkeys(fields.CORRECTORS_OF_METHOD, _adjoint),
    }
    if config.method not in counts:
        raise ValueError(f"method = {config.method!r}: must be one of {tuple(counts)}")
    return counts[config.method](config, num_devices)


def _ipf(config: ConfigDict, num_devices: int) -> int:
    given = config.ipf
    if (config.source.access, config.target.access) != ("samples", "energy"):
        raise ValueError(
            f"source.access = {config.source.access!r}, target.access = "
            f"{config.target.access!r}: must be 'samples' and 'energy'"
        )
    if given.forward_loss not in ("auto", "semi_discrete"):
        raise ValueError(f"ipf.forward_loss = {given.forward_loss!r}: must be 'semi_discrete'")
    steps = given.iterations * given.forward_steps
    last = given.iterations * given.backward_steps
    # By the network along the paths as well, which are simulated and scored.
    each = config.batch_size * (1 + 2 * _features(config))
    fitted = (given.likelihood_batch_size or config.batch_size) * _features(config)
    return steps * each + _refreshes(config, steps, num_devices) + last * fitted


def _sampler(config: ConfigDict, num_devices: int) -> int:
    steps, loss = config.sampler.num_steps, config.sampler.loss
    if loss == "path_kl":
        return steps * config.batch_size * (1 + 2 * _features(config))
    inner = config.grid.num_steps - 1 if loss == "subtrajectory_balance" else 0
    each = config.batch_size * (1 + inner + 2 * _features(config))
    return steps * each + _refreshes(config, steps, num_devices)


def _adjoint(config: ConfigDict, num_devices: int) -> int:
    given, corrector = config.adjoint, resolve_corrector(config)
    explores = corrector == "semi_discrete" and given.off_policy_ratio > 0
    stages = [given.forward_steps, given.corrector_steps if corrector == "learned" else 0]
    steps = given.iterations * given.forward_steps
    rollouts = given.iterations * sum(-(-stage // given.rollout_every) for stage in stages)
    gathered = given.rollout_size * (1 + _features(config))
    if explores:
        gathered += given.rollout_size * bool(config.exploration.add_ends)
    # The previous iterate's network as well, where there is damping.
    scored = config.batch_size * _features(config) * (2 if given.damping else 1)
    total = rollouts * gathered + steps * scored
    total += given.backward_steps * config.batch_size * _features(config)
    return total + (_refreshes(config, steps, num_devices) if explores else 0)


def _refuse_more(config: ConfigDict) -> None:
    """Refuses what recomputes, or looks at energies besides."""
    fed, window = config.network.energy_feature, config.sampler.window
    allowed = {
        "network.steps_at_once": not fed or config.network.steps_at_once == 0,
        "sampler.window": not fed or config.method != "sampler" or window == "last",
    }
    for name, holds in allowed.items():
        if not holds:
            section, _, key = name.partition(".")
            raise ValueError(
                f"{name} = {config[section][key]!r}: evaluates more than is counted"
            )


def _features(config: ConfigDict) -> int:
    """Evaluations by the network along one path."""
    return config.grid.num_steps * bool(config.network.energy_feature)


def _refreshes(config: ConfigDict, steps: int, num_devices: int) -> int:
    given = config.exploration
    if given.refresh_method == "none":
        return 0
    each = given.refresh_steps * (_LEAPFROGS if given.refresh_method == "hmc" else 1)
    # Where each begins, and, for who has no mass, where it ends.
    moved = given.buffer_size * num_devices * (2 + each)
    return -(-steps // given.refresh_every) * moved
