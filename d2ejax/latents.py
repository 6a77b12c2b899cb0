"""Classes of images as posteriors of the latent that a generator makes them from.

A generator, a classifier and a judge are trained beforehand and lie in a folder. The classifier
is the reward; the judge, another network, never is one, so that images which only fool the
classifier do not pass.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from d2ejax.endpoints import class_reward, latent_posterior, options
from d2ejax.endpoints.base import Endpoint
from d2ejax.endpoints.latent import Combine
from d2ejax.images import datasets, networks, weights
from d2ejax.images.networks import Description
from d2ejax.typing import Array, Params

GENERATOR, CLASSIFIER, JUDGE = "generator", "classifier", "judge"
"""Their names in a folder."""

GENERATORS = ("autoencoder", "adversary")


class Trained(NamedTuple):
    """A trained network.

    Attributes:
        params: Its parameters, NumPy arrays.
        description: What it is, see `d2ejax.images.networks`.
    """

    params: Params
    description: Description


class Models(NamedTuple):
    """What classes of images are made of, and judged by.

    Attributes:
        generator: Makes an image of a latent.
        classifier: The reward.
        judge: Judges, and has the features that images are compared in.
    """

    generator: Trained
    classifier: Trained
    judge: Trained

    def decode(self, latent: Array) -> Array:
        """The image of a latent: `(latent_dim,)` to `(height, width, channels)`."""
        return networks.decode(self.generator.description, self.generator.params, latent)

    def log_probabilities(self, latent: Array) -> Array:
        """What the classifier says of a latent's image, `(num_classes,)`."""
        image = self.decode(latent)
        return networks.log_probabilities(
            self.classifier.description, self.classifier.params, image
        )

    def judged(self, image: Array) -> tuple[Array, Array]:
        """What the judge says of an image: `(num_classes,)`, and its features `(dim,)`."""
        return (
            networks.log_probabilities(self.judge.description, self.judge.params, image),
            networks.features(self.judge.description, self.judge.params, image),
        )


def load_models(folder: str | Path) -> Models:
    """Reads the three networks of a folder; what has been read is kept while it is unchanged.

    Args:
        folder: Where they lie.

    Raises:
        FileNotFoundError: If one is missing.
        ValueError: If one is damaged.
    """
    files = sorted(path for path in Path(folder).glob("*") if path.is_file())
    return _load(str(folder), tuple((path.name, path.stat().st_mtime_ns) for path in files))


@functools.lru_cache(maxsize=4)
def _load(folder: str, stamp: tuple[tuple[str, int], ...]) -> Models:
    del stamp  # Tells apart what a folder held at different times.
    names = (GENERATOR, CLASSIFIER, JUDGE)
    return Models(*(Trained(*weights.load(folder, name)) for name in names))


def image_class(
    *,
    folder: str,
    classes: Sequence[int],
    each: bool = False,
    latent_dim: int = 20,
    dataset: str = "mnist_5000",
    data_folder: str = "",
    generator: str = "autoencoder",
    combine: Combine = "sum",
    temperature: float = 1.0,
) -> Endpoint:
    """The latents whose images a classifier takes for one of some classes.

    p(z) r(classes | f(z))^{1/τ}, see `d2ejax.endpoints.latent_posterior`, with samples by
    rejection, which metrics alone may see. The networks are read when they are first needed.

    Args:
        folder: Where the trained networks lie, see `load_models`; the runner trains them if
            they do not.
        classes: Those asked for.
        each: Whether each of them is a target of its own, of which this is the first; the
            runner then trains one bridge for all, see `image_classes`.
        latent_dim: The dimension of the generator's latent.
        dataset: What they are trained on, see `d2ejax.images.datasets.load`.
        data_folder: Where the files of that lie, if it needs any; of use to the runner alone.
        generator: "autoencoder" or "adversary", see `d2ejax.images.networks`.
        combine: "sum" for any of the classes, "max" for the best of them.
        temperature: τ > 0.

    Returns:
        The endpoint.

    Raises:
        ValueError: If an option is out of its range; where the networks are read, if they are
            not there or are others.
    """
    given = _Given(folder, class_numbers(classes), latent_dim, dataset, generator)
    wanted = given.classes[:1] if each else given.classes
    return latent_posterior(
        latent_dim,
        class_reward(_log_probabilities(given), wanted, combine=combine),
        temperature=temperature,
        bounded=True,
        name="image_class",
    )


def image_classes(
    *,
    folder: str,
    classes: Sequence[int],
    latent_dim: int = 20,
    dataset: str = "mnist_5000",
    generator: str = "autoencoder",
    temperature: float = 1.0,
) -> Callable[[Array], Endpoint]:
    """Each of some classes as a target, for one bridge that is amortised over them.

    Args:
        folder: See `image_class`, as for all others.
        classes: The classes.
        latent_dim: The dimension of the generator's latent.
        dataset: What the networks are trained on.
        generator: "autoencoder" or "adversary".
        temperature: τ > 0.

    Returns:
        Maps the position of a class among them, a traced integer, to the endpoint.

    Raises:
        ValueError: As by `image_class`.
    """
    given = _Given(folder, class_numbers(classes), latent_dim, dataset, generator)
    log_probabilities = _log_probabilities(given)

    def endpoint_of(context: Array) -> Endpoint:
        label = jnp.asarray(given.classes)[context]
        return latent_posterior(
            latent_dim,
            lambda latent: log_probabilities(latent)[label],
            temperature=temperature,
            name="image_class",
        )

    return endpoint_of


class _Given(NamedTuple):
    """The options that say which networks stand behind a class."""

    folder: str
    classes: tuple[int, ...]
    latent_dim: int
    dataset: str
    generator: str


def _log_probabilities(given: _Given) -> Callable[[Array], Array]:
    """Those of a latent's image by the networks of the folder, once these have been checked."""
    options.refuse_unknown("generator", given.generator, GENERATORS)
    options.refuse_unknown("dataset", given.dataset, datasets.DATASETS)
    options.integer("latent_dim", given.latent_dim, minimum=1)

    def log_probabilities(latent: Array) -> Array:
        models = load_models(given.folder)
        there, classifier = models.generator.description, models.classifier.description
        if (there["network"], there["latent_dim"]) != (given.generator, given.latent_dim):
            raise ValueError(
                f"generator = {given.generator!r} with latent_dim = {given.latent_dim}: must "
                f"be {there['network']!r} with {there['latent_dim']}, as in folder = "
                f"{given.folder!r}"
            )
        if max(given.classes) >= classifier["num_classes"]:
            raise ValueError(
                f"classes = {given.classes}: must be below {classifier['num_classes']}, the "
                f"number of classes of {given.dataset!r}"
            )
        return models.log_probabilities(latent)

    return log_probabilities


def class_numbers(classes: int | Sequence[int]) -> tuple[int, ...]:
    """Classes as a tuple, be it of one that a command line gave as a number.

    Raises:
        ValueError: If there are none, or they are not integers from 0 on, each once.
    """
    labels = np.atleast_1d(np.asarray(classes)).tolist()
    wanted = tuple(options.integer("classes", label, minimum=0) for label in labels)
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"classes = {wanted!r}: must name at least one, each once")
    return wanted


def neighbours(images: Array, candidates: Array) -> Array:
    """The nearest of some candidates to each image, by squared distance of the pixels.

    Args:
        images: `(n, height, width, channels)`.
        candidates: `(m, height, width, channels)`.

    Returns:
        Indices of candidates, `(n,)`.
    """

    def nearest(image: Array) -> Array:
        return jnp.argmin(jnp.sum(jnp.square(candidates - image[None]), axis=(1, 2, 3)))

    return jax.lax.map(nearest, images)
