"""Conditions between the keys of a configuration whose target is a class of images."""

from ml_collections import ConfigDict

from experiments.relations import Relation, resolve_losses

_IMAGES = "image_class"
_EACH = "with target.options.each = True"


def _each(config: ConfigDict) -> bool:
    """Whether one bridge is trained for each of several classes."""
    given = config.target
    return given.name == _IMAGES and bool(given.options.get("each", False))


def _has_no_potential(position: int) -> Relation:
    """What is one for all classes must not depend on the class, as a potential does."""

    def holds(config: ConfigDict) -> bool:
        from d2ejax.algorithms.half_steps import WITH_POTENTIAL

        return not _each(config) or resolve_losses(config)[position] not in WITH_POTENTIAL

    return Relation(
        ("ipf.backward_loss", "ipf.forward_loss")[position],
        holds,
        lambda c: f"a loss without a potential, as 'log_variance', {_EACH}",
    )


RELATIONS_OF_IMAGES: tuple[Relation, ...] = (
    Relation(
        "source.name",
        lambda c: c.source.name != _IMAGES,
        lambda c: "another one: a class of images is a target alone",
    ),
    Relation(
        "target.access",
        lambda c: c.target.name != _IMAGES or c.target.access == "energy",
        lambda c: "'energy': the samples of a class of images are for metrics alone",
    ),
    Relation("method", lambda c: not _each(c) or c.method == "ipf", lambda c: f"'ipf' {_EACH}"),
    Relation(
        "source.access",
        lambda c: not _each(c) or c.source.access == "samples",
        lambda c: f"'samples' {_EACH}",
    ),
    Relation(
        "ipf.cached_batches",
        lambda c: not _each(c) or not c.ipf.cached_batches,
        lambda c: f"0 {_EACH}",
    ),
    *map(_has_no_potential, (0, 1)),
)
