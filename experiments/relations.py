"""Conditions between the keys of a configuration."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ml_collections import ConfigDict

from experiments import fields

if TYPE_CHECKING:  # At run time it would bring in jax, which refusing a config can do without.
    from d2ejax.algorithms.half_steps import Loss


class Relation(NamedTuple):
    """A condition between keys.

    Attributes:
        field: The key that the message names.
        holds: Whether a configuration whose keys each hold an allowed value meets it.
        allowed: The end of the sentence "must be ..." for that configuration.
    """

    field: str
    holds: Callable[[ConfigDict], bool]
    allowed: Callable[[ConfigDict], str]


def resolve_losses(config: ConfigDict) -> tuple["Loss", "Loss"]:
    """The losses of the backward and of the forward half-step, "auto" resolved."""
    from d2ejax.algorithms.half_steps import losses_by_access

    backward, forward = losses_by_access(config.source.access, config.target.access)
    named = fields.LOSS_OF_METHOD.get(config.method)
    if named is not None:
        backward = forward = named
    given_backward, given_forward = config.ipf.backward_loss, config.ipf.forward_loss
    if given_backward in fields.ANCHORED_LOSSES and forward == "semi_discrete":
        forward = "log_variance"  # One of the two may have anchors, and it is given.
    found = (
        backward if given_backward == "auto" else given_backward,
        forward if given_forward == "auto" else given_forward,
    )
    plain = [
        "likelihood"
        if (given, loss, named) == ("auto", "bridge_matching", None) and not anew
        else loss
        for given, loss, anew in zip(
            (given_backward, given_forward), found, _reanchored(config), strict=True
        )
    ]
    return plain[0], plain[1]


def _reanchored(config: ConfigDict) -> tuple[bool, bool]:
    """Whether the backward and the forward half-step rejoin their ends by the reference."""
    given = config.ipf.reanchor
    return given in ("both", "backward"), given in ("both", "forward")


def _has_loss(config: ConfigDict, *losses: str) -> bool:
    if config.method in fields.WITHOUT_HALF_STEPS:
        return False
    return any(loss in losses for loss in resolve_losses(config))


def _named(config: ConfigDict, losses: tuple[str, ...]) -> str:
    """The first of the two half-steps' losses that is one of these, in quotes."""
    return repr(next(loss for loss in resolve_losses(config) if loss in losses))


def _loss_relation(field: str, pinned: str) -> Relation:
    """What the loss of a half-step asks of the end that it pins."""
    allowed = {
        "samples": f"'auto' or one of {fields.SAMPLE_LOSSES}",
        "energy": f"'auto' or one of {fields.ENERGY_LOSSES}",
    }

    def holds(config: ConfigDict) -> bool:
        loss, access = config.ipf[field], config[pinned].access
        return loss == "auto" or (loss in fields.ENERGY_LOSSES) == (access == "energy")

    return Relation(
        f"ipf.{field}",
        holds,
        lambda c: f"{allowed[c[pinned].access]} with {pinned}.access = {c[pinned].access!r}",
    )


_STEPS_OF_METHOD = {
    "lightsb": ("light", "backward_steps"),
    "sampler": ("sampler", "num_steps"),
    "enot": ("enot", "num_steps", "backward_steps"),
    **{name: (name, "num_steps") for name in fields.OF_GENERATIVE_MODELS},
    **dict.fromkeys(fields.COUPLING_OF_METHOD, ("matching", "num_steps")),
    **dict.fromkeys(
        fields.CORRECTORS_OF_METHOD, ("adjoint", "forward_steps", "backward_steps")
    ),
}
"""The section of a method that is not IPF, and its gradient steps of one process each."""


def _fewest_steps(config: ConfigDict) -> int:
    if config.method not in _STEPS_OF_METHOD:
        return config.ipf.iterations * min(config.ipf.forward_steps, config.ipf.backward_steps)
    section, *names = _STEPS_OF_METHOD[config.method]
    return min(config[section][name] for name in names)


_WITH_ENDS = ("pair", "snapshots")
"""Sections that bring both ends along."""


def _relations_of_end(end: str, section: str) -> tuple[Relation, ...]:
    """An end is of a section exactly if that has a name, and has then no options itself."""
    return (
        Relation(
            f"{end}.name",
            lambda c: (c[end].name == section) == (c[section].name != "none"),
            lambda c: (
                f"the name of an endpoint with {section}.name = 'none'"
                if c[section].name == "none"
                else f"{section!r} with {section}.name = {c[section].name!r}"
            ),
        ),
        Relation(
            f"{end}.options",
            lambda c: c[section].name == "none" or not c[end].options,
            lambda c: f"empty with {end}.name = {section!r}: see {section}.options",
        ),
    )


def _relation_of_options(section: str) -> Relation:
    return Relation(
        f"{section}.options",
        lambda c: c[section].name != "none" or not c[section].options,
        lambda c: f"empty with {section}.name = 'none'",
    )


RELATIONS_OF_ENDS: tuple[Relation, ...] = (
    Relation(
        "pair.name",
        lambda c: "none" in (c.pair.name, c.snapshots.name),
        lambda c: f"'none' with snapshots.name = {c.snapshots.name!r}: either brings both ends",
    ),
    *(
        relation
        for section in _WITH_ENDS
        for end in ("source", "target")
        for relation in _relations_of_end(end, section)
    ),
    *map(_relation_of_options, _WITH_ENDS),
    Relation(
        "snapshots.left_out",
        lambda c: c.snapshots.name != "none" or c.snapshots.left_out == -1,
        lambda c: "-1 with snapshots.name = 'none'",
    ),
)


def _of_light_start(field: str, allowed: str | bool, reason: str) -> Relation:
    """What a start from a light bridge asks of a key."""
    section, name = field.split(".")
    shown = repr(allowed) if isinstance(allowed, str) else str(allowed).lower()
    return Relation(
        field,
        lambda c: c.ipf.start_from == "reference" or c[section][name] == allowed,
        lambda c: f"{shown} with ipf.start_from = 'lightsb', {reason}",
    )


RELATIONS_OF_START: tuple[Relation, ...] = (
    Relation(
        "ipf.start_from",
        lambda c: c.ipf.start_from == "reference" or c.method not in fields.WITHOUT_HALF_STEPS,
        lambda c: f"'reference' with method = {c.method!r}, which has no half-steps",
    ),
    _of_light_start("source.access", "samples", "fitted to samples of both ends"),
    _of_light_start("target.access", "samples", "fitted to samples of both ends"),
    _of_light_start(
        "reference.discretisation", "exact", "whose steps are those of the bridge itself"
    ),
    _of_light_start("ipf.first_coupling", "reference", "whose ends the first half-step draws"),
    _of_light_start("ipf.warm_start", True, "fitted once"),
)
"""Conditions of a start from a light bridge."""

RELATIONS_OF_SAMPLES: tuple[Relation, ...] = (
    Relation(
        "ipf.reanchor",
        lambda c: (
            not any(
                loss in fields.FIXED_VARIANCE_LOSSES and anew
                for loss, anew in zip(resolve_losses(c), _reanchored(c), strict=True)
            )
        ),
        lambda c: (
            "'none', or a half-step of another loss: "
            f"{_named(c, fields.FIXED_VARIANCE_LOSSES)} is of paths as they were drawn"
        ),
    ),
    Relation(
        "ipf.first_coupling",
        lambda c: (
            c.ipf.first_coupling == "reference"
            or c.method in fields.WITHOUT_HALF_STEPS
            or (
                c.source.access == c.target.access == "samples"
                and resolve_losses(c)[0] == "bridge_matching"
            )
        ),
        lambda c: (
            "'reference', or ends that both are samples and the loss 'bridge_matching' of the "
            "first half-step, the backward one"
        ),
    ),
    Relation(
        "learn_variance",
        lambda c: not c.learn_variance or not _has_loss(c, *fields.FIXED_VARIANCE_LOSSES),
        lambda c: (
            f"false with the loss {_named(c, fields.FIXED_VARIANCE_LOSSES)}: it fits drifts "
            "alone, and is right for a fixed diffusion coefficient alone"
        ),
    ),
    Relation(
        "ipf.cache_every",
        lambda c: (
            not c.ipf.cached_batches
            or not _has_loss(c, *fields.SAMPLE_LOSSES)
            or not (
                c.ipf.forward_steps % c.ipf.cache_every
                or c.ipf.backward_steps % c.ipf.cache_every
            )
        ),
        lambda c: (
            f"a divisor of ipf.forward_steps = {c.ipf.forward_steps} and of "
            f"ipf.backward_steps = {c.ipf.backward_steps}: no half-step may begin with paths "
            "from before the last"
        ),
    ),
)
"""Conditions of half-steps between sampled ends."""

RELATIONS_OF_EVALUATION: tuple[Relation, ...] = (
    Relation(
        "evaluate.smc",
        lambda c: (
            not c.evaluate.smc
            or (c.source.name == "gaussian" and "covariance" not in c.source.options)
        ),
        lambda c: (
            "false but from a Gaussian with one standard deviation, from whose marginals its "
            "densities go to the target"
        ),
    ),
    Relation(
        "evaluate.smc",
        lambda c: not c.evaluate.smc or c.method != "cfm",
        lambda c: "false with method = 'cfm', a flow without noise",
    ),
)
"""Conditions of what a run is judged by."""

RELATIONS: tuple[Relation, ...] = (
    _loss_relation("forward_loss", pinned="target"),
    _loss_relation("backward_loss", pinned="source"),
    *RELATIONS_OF_START,
    *RELATIONS_OF_SAMPLES,
    *RELATIONS_OF_EVALUATION,
    Relation(
        "ipf.reanchor",
        lambda c: all(
            loss != "bridge_matching" or anew
            for loss, anew in zip(resolve_losses(c), _reanchored(c), strict=True)
        ),
        lambda c: (
            "'both', or the half-step of the loss 'bridge_matching', which fits bridges of the "
            "reference"
        ),
    ),
    Relation(
        "ipf.backward_loss",
        lambda c: not all(loss in fields.ANCHORED_LOSSES for loss in resolve_losses(c)),
        lambda c: f"another loss: one of the two may be one of {fields.ANCHORED_LOSSES}",
    ),
    Relation(
        "ipf.paths_per_start",
        lambda c: c.ipf.paths_per_start >= 2 or not _has_loss(c, *fields.VARIANCE_LOSSES),
        lambda c: (
            f"an integer ≥ 2 with the loss {_named(c, fields.VARIANCE_LOSSES)}, of "
            "ipf.forward_loss or ipf.backward_loss: a variance over those paths"
        ),
    ),
    Relation(
        "exploration.reuse_path",
        lambda c: (
            not c.exploration.reuse_path
            or c.ipf.paths_per_start >= 2
            or not _has_loss(c, *fields.ENERGY_LOSSES)
        ),
        lambda c: "false with ipf.paths_per_start = 1: the reused path would be the only one",
    ),
    Relation(
        "batch_size",
        lambda c: (
            not _has_loss(c, *fields.ENERGY_LOSSES) or c.batch_size % c.ipf.paths_per_start == 0
        ),
        lambda c: f"a multiple of ipf.paths_per_start = {c.ipf.paths_per_start}",
    ),
    Relation(
        "network.steps_at_once",
        lambda c: (
            not c.network.steps_at_once or c.grid.num_steps % c.network.steps_at_once == 0
        ),
        lambda c: f"0 or a divisor of grid.num_steps = {c.grid.num_steps}",
    ),
    Relation(
        "reference.sigma_max",
        lambda c: (
            c.reference.name != "variance_exploding"
            or c.reference.sigma_max > c.reference.sigma_min
        ),
        lambda c: f"a number > reference.sigma_min = {c.reference.sigma_min:g}",
    ),
    Relation(
        "reference.beta_max",
        lambda c: (
            c.reference.name != "variance_preserving"
            or c.reference.beta_max >= c.reference.beta_min
        ),
        lambda c: f"a number ≥ reference.beta_min = {c.reference.beta_min:g}",
    ),
    Relation(
        "optimiser.warmup_steps",
        lambda c: c.optimiser.warmup_steps < _fewest_steps(c),
        lambda c: f"fewer than the {_fewest_steps(c)} gradient steps of one process",
    ),
)
