"""The networks behind a class of images: `python -m experiments.image_models --help`.

A generator, a classifier and a judge, each written to the folder when it is trained, so that a
killed command goes on with the next one. A run whose target is a class of images trains those
that are missing before it begins.
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from d2ejax import latents
from d2ejax.endpoints import base as endpoints
from d2ejax.images import adversarial, autoencoder, classification, datasets, networks, weights
from d2ejax.images.datasets import Images
from d2ejax.typing import Key, Params
from experiments import ends, workdir
from experiments.errors import InputError, StorageError, one_line

NETWORKS = "networks.json"
"""In the folder: what the networks are trained on. In a workdir: which ones it was run with."""


METRICS = "metrics"
"""The folder in that of the networks with what they were found to be worth."""


class Settings(NamedTuple):
    """How the networks of a data set are made and trained.

    Attributes:
        generator: Options of `train_autoencoder`, or of `train_gan`.
        classifier: Options of `train_classifier`.
        judge: The same for the judge, another network than the classifier.
    """

    generator: Mapping[str, Any]
    classifier: Mapping[str, Any]
    judge: Mapping[str, Any]


USUAL = Settings(
    generator={"width": 16, "num_steps": 4000},
    classifier={"width": 16, "num_steps": 1500},
    judge={"width": 24, "num_steps": 1500},
)
SETTINGS = {
    # So small that a pixel is a stroke: a batch of grey ones is no draw of white and black.
    "digits": Settings(
        generator={
            "width": 8,
            "num_steps": 1000,
            "kind": "mlp",
            "likelihood": "gaussian",
            "learning_rate": 5e-3,
            "decay": 0.99,
            "shift": 0,
        },
        classifier={"width": 8, "num_steps": 500, "shift": 0},
        judge={"width": 12, "num_steps": 500, "shift": 0},
    ),
}
"""Of data sets other than the usual 28 × 28 and 32 × 32."""

_DESCRIBED = ("width", "kind", "likelihood")
"""What of the generator's options its description takes."""


def prepare_for(config: ConfigDict, directory: Path) -> None:
    """Trains the networks that a configuration's target is made of, unless they are there.

    Args:
        config: A validated config whose target is a class of images.
        directory: The workdir of the run.

    Raises:
        InputError: If the data cannot be read, or the folder holds networks of another kind or
            others than the run began with.
        StorageError: If the disk is full.
    """
    given = config.target.options.to_dict()
    named = ("folder", "dataset", "data_folder", "generator", "latent_dim")
    prepare(**{name: given[name] for name in named if name in given})
    target = ends.build_end(config.target)
    try:
        # Finds out whether they are what the options say, and computes nothing.
        jax.eval_shape(endpoints.log_density(target), jnp.zeros(target.dim))
    except (ValueError, AssertionError) as error:
        raise InputError(f"target.options: {one_line(error)}") from error
    pinned, now = directory / NETWORKS, digests(given["folder"])
    if pinned.is_file() and json.loads(pinned.read_text()) != now:
        raise InputError(
            f"target.options.folder = {given['folder']!r}: holds other networks than "
            f"{directory} was run with: must be those, or a new --workdir"
        )


def digests(folder: str | Path) -> dict[str, str]:
    """The checksums of the networks of a folder, by their names."""
    manifests = {name: Path(folder) / f"{name}.json" for name in _TRAINERS}
    return {name: json.loads(path.read_text())["sha256"] for name, path in manifests.items()}


def prepare(
    folder: str | Path,
    *,
    dataset: str = "mnist_5000",
    data_folder: str = "",
    generator: str = "autoencoder",
    latent_dim: int = 20,
    seed: int = 0,
) -> None:
    """Trains the generator, the classifier and the judge of a folder, those that it lacks.

    Args:
        folder: Where they go.
        dataset: What they are trained on, see `datasets.load`.
        data_folder: Where the files of that lie, if it needs any.
        generator: "autoencoder" or "adversary".
        latent_dim: Of the generator.
        seed: Of all three.

    Raises:
        InputError: If the data cannot be read.
        StorageError: If the disk is full.
    """
    folder = Path(folder)
    asked = {
        "dataset": dataset,
        "generator": generator,
        "latent_dim": latent_dim,
        "seed": seed,
    }
    _check_asked(folder / NETWORKS, asked)
    missing = [name for name in _TRAINERS if not (folder / f"{name}.json").is_file()]
    if not missing:
        return
    try:
        train, test = datasets.load(dataset, data_folder or None)
    except ValueError as error:
        raise InputError(one_line(error)) from error
    with workdir.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        workdir.write_json(folder / NETWORKS, asked)
    keys = dict(zip(_TRAINERS, jax.random.split(jax.random.key(seed), 3), strict=True))
    settings = SETTINGS.get(dataset, USUAL)
    for name in missing:
        begun = time.perf_counter()
        say = functools.partial(_progress, folder, name)
        description, params, measured = _TRAINERS[name](
            keys[name],
            train,
            test,
            settings,
            generator=generator,
            latent_dim=latent_dim,
            report=say,
        )
        with workdir.writing(folder):
            weights.save(folder, name, params, description)
            found = {**measured, "seconds": round(time.perf_counter() - begun, 1)}
            (folder / METRICS).mkdir(exist_ok=True)
            workdir.write_json(folder / METRICS / f"{name}.json", found)
        numbers = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
        print(f"{folder}: {name} trained: {numbers}", flush=True)


def _check_asked(path: Path, asked: Mapping[str, Any]) -> None:
    """Raises InputError if a folder is of other networks."""
    there = json.loads(path.read_text()) if path.is_file() else asked
    for name, value in asked.items():
        if there[name] != value:
            raise InputError(
                f"{name} = {value!r}: must be {there[name]!r}, as in {path}, or the folder "
                "another one"
            )


Made = tuple[networks.Description, Params, dict[str, float]]


def _generator(
    key: Key,
    train: Images,
    test: Images,
    settings: Settings,
    *,
    generator: str,
    latent_dim: int,
    report: Callable[..., None],
) -> Made:
    key, own_key = jax.random.split(key)
    given: dict[str, Any] = dict(settings.generator)
    described = {name: value for name, value in given.items() if name in _DESCRIBED}
    shape = train.pixels.shape[1:]
    if generator == "adversary":
        for chosen in (given, described):
            chosen.pop("likelihood", None)
        params, _ = adversarial.train_gan(
            key, train, latent_dim=latent_dim, report=report, **given
        )
        description = networks.adversary(shape, latent_dim=latent_dim, **described)
        return description, {"generator": params["generator"]}, {}
    params, _ = autoencoder.train_autoencoder(
        key, train, latent_dim=latent_dim, report=report, **given
    )
    description = networks.autoencoder(shape, latent_dim=latent_dim, **described)
    found = autoencoder.evaluate_autoencoder(own_key, description, params, test)
    # What encodes images has no part in what follows.
    return description, {"generator": params["generator"]}, found


def _classifier(
    key: Key,
    train: Images,
    test: Images,
    settings: Settings,
    *,
    report: Callable[..., None],
    judge: bool = False,
    **of_generator: Any,
) -> Made:
    del of_generator
    given: dict[str, Any] = dict(settings.judge if judge else settings.classifier)
    params, _ = classification.train_classifier(key, train, report=report, **given)
    description = networks.classifier(
        train.pixels.shape[1:], num_classes=len(train.classes), width=given["width"]
    )
    return description, params, classification.evaluate_classifier(description, params, test)


_TRAINERS: Mapping[str, Callable[..., Made]] = {
    latents.GENERATOR: _generator,
    latents.CLASSIFIER: _classifier,
    latents.JUDGE: functools.partial(_classifier, judge=True),
}


def _progress(folder: Path, name: str, step: int, metrics: Mapping[str, np.ndarray]) -> None:
    print(f"{folder}: {name}: step {step}  loss {metrics['loss'].mean():.4g}", flush=True)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="experiments.image_models", description=__doc__)
    add = parser.add_argument
    add("--folder", type=Path, required=True, help="where the networks go")
    add("--dataset", default="mnist_5000", choices=sorted(datasets.DATASETS))
    add("--data_folder", default="", help="where the files of the data set lie")
    add("--generator", default="autoencoder", choices=latents.GENERATORS)
    add("--latent_dim", type=int, default=20)
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what is missing, and returns the exit status."""
    try:
        prepare(**vars(parse(argv)))
    except (InputError, ValueError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except (StorageError, FloatingPointError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 3 if isinstance(error, StorageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
