"""What backpropagation through k of K steps alone costs, and what it gives.

`python -m benchmarks.truncated_gradients --folder=runs/truncated` trains a diffusion sampler of
a ring of Gaussians by the path-wise KL for a while and then compares, at those parameters and
on the same paths, the gradient through the last k of K steps, and through a window of k steps
that each batch draws, with the whole one: bias and spread from batch to batch, in units of the
whole gradient's length, angle, and milliseconds, interleaved. It leaves results.json,
results.md and truncated.png.
"""

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import runs
from d2ejax import (
    endpoints,
    kernels,
    losses,
    networks,
    plotting,
    references,
    rollouts,
    time_grids,
)
from d2ejax.algorithms import samplers
from d2ejax.algorithms.base import Model, gradient_step, init_model
from d2ejax.kernels import Process
from d2ejax.typing import Array, Key, Params
from experiments import workdir

_T_MAX, _START = 1.0, 1e-3
_FIGURE, _TABLE, _RECORD = "truncated.png", "results.md", "results.json"
_COLUMNS = ("steps k", "which", "bias", "spread", "cosine", "ms / gradient")


class Tracked(NamedTuple):
    """Which steps a gradient goes through.

    Attributes:
        steps: How many.
        window: "last" or "random".
    """

    steps: int
    window: samplers.Window = "last"


class Problem(NamedTuple):
    """A sampler trained by the path-wise KL.

    Attributes:
        process: The process.
        init: Maps a key to its parameters.
        loss: Maps `(params, key, tracked)` to the loss on one batch.
    """

    process: Process
    init: Callable[[Key], Params]
    loss: Callable[[Params, Key, Tracked], Array]


def problem(num_steps: int, batch_size: int, width: int) -> Problem:
    """From a fixed start to a ring of eight Gaussians, around Brownian motion."""
    law, grid = references.brownian(1.0), time_grids.end_refined(num_steps, _T_MAX)
    network, target = networks.drift_network(2, _T_MAX, width=width), endpoints.ring()
    process = kernels.process(network.apply, law, grid)
    reference = kernels.reference_process(law, grid)
    marginals = references.gaussian_marginals(law, grid, mean=jnp.zeros(2), variance=_START**2)

    def loss(params: Params, key: Key, tracked: Tracked) -> Array:
        start_key, path_key, window_key = jax.random.split(key, 3)
        starts = _START * jax.random.normal(start_key, (batch_size, 2))
        window = jax.random.randint(window_key, (), 0, num_steps)
        simulate = functools.partial(
            rollouts.simulate,
            tracked_steps=tracked.steps,
            window_start=window if tracked.window == "random" else None,
        )
        keys = jax.random.split(path_key, batch_size)
        paths = jax.vmap(simulate, (0, None, None, 0))(keys, process, params, starts)
        costs = rollouts.step_kl_divergences(process, params, reference, None, paths)
        log_target = jax.vmap(endpoints.base.log_density(target))(paths[:, -1])
        return losses.control_loss(costs, jax.vmap(marginals)(paths)[:, -1] - log_target)

    return Problem(process, network.init, loss)


def train(given: Problem, key: Key, num_steps: int) -> Params:
    """Parameters after some gradient steps by the whole gradient."""
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(2e-3))

    def step(model: Model, key: Key) -> tuple[Model, None]:
        def loss(params: Params) -> tuple[Array, dict[str, Array]]:
            return given.loss(params, key, Tracked(given.process.num_steps)), {}

        return gradient_step(loss, model, optimiser, decay=0.0, axis_name=None)[0], None

    @jax.jit
    def run(key: Key) -> Params:
        init_key, step_key = jax.random.split(key)
        model = init_model(given.init(init_key), optimiser)
        return jax.lax.scan(step, model, jax.random.split(step_key, num_steps))[0].params

    return run(key)


def measure(
    given: Problem, params: Params, key: Key, kinds: Sequence[Tracked], num_batches: int
) -> list[runs.Record]:
    """Moments and cost of each kind of gradient; the last one is the whole gradient."""
    gradients = {
        kind: jax.jit(
            lambda params, key, kind=kind: jax.flatten_util.ravel_pytree(
                jax.grad(given.loss)(params, key, kind)
            )[0]
        )
        for kind in kinds
    }
    for gradient in gradients.values():
        jax.block_until_ready(gradient(params, key))
    found: dict[Tracked, list[np.ndarray]] = {kind: [] for kind in kinds}
    seconds: dict[Tracked, list[float]] = {kind: [] for kind in kinds}
    # Interleaved, and the same paths for all.
    for batch_key in jax.random.split(key, num_batches):
        for kind, gradient in gradients.items():
            start = time.perf_counter()
            value = jax.block_until_ready(gradient(params, batch_key))
            seconds[kind].append(time.perf_counter() - start)
            found[kind].append(np.asarray(value, np.float64))
    stacked = {kind: np.stack(values) for kind, values in found.items()}
    whole = stacked[kinds[-1]]
    return [
        # The median: the cost of a window depends on where it is.
        {**kind._asdict(), "milliseconds": 1e3 * float(np.median(seconds[kind]))}
        | moments(stacked[kind], whole)
        for kind in kinds
    ]


def moments(gradients: np.ndarray, whole: np.ndarray) -> dict[str, float]:
    """Bias, spread and angle of gradients `(num_batches, num_params)`, beside whole ones.

    Of the same paths, row by row. Products of means over n batches exceed those of what is
    expected by the covariance over n, which is taken off all of them; what is then below zero
    is lost in the noise, a bias of 0 and of the others NaN.
    """
    n = len(gradients)

    def product(a: np.ndarray, b: np.ndarray) -> float:
        shared = np.sum((a - a.mean(axis=0)) * (b - b.mean(axis=0))) / (n - 1)
        return float(a.mean(axis=0) @ b.mean(axis=0) - shared / n)

    def root(square: float) -> float:
        return square**0.5 if square > 0 else float("nan")

    size, difference = root(product(whole, whole)), gradients - whole
    return {
        "bias": max(product(difference, difference), 0.0) ** 0.5 / size,
        "spread": float(gradients.var(axis=0, ddof=1).sum()) ** 0.5 / size,
        "cosine": product(gradients, whole) / (root(product(gradients, gradients)) * size),
    }


def table(found: Sequence[runs.Record]) -> str:
    """A line for each kind of gradient."""
    rows = (
        [
            str(line["steps"]),
            line["window"] if line is not found[-1] else "all",
            runs.number(line["bias"]),
            runs.number(line["spread"], 2),
            runs.number(line["cosine"]),
            runs.number(line["milliseconds"], 2),
        ]
        for line in found
    )
    return runs.markdown(_COLUMNS, rows)


def write(folder: Path, found: Sequence[runs.Record]) -> None:
    """Writes the record, the table and the figure, and prints the table."""
    folder.mkdir(parents=True, exist_ok=True)
    workdir.write_json(folder / _RECORD, {"gradients": list(found)})
    (folder / _TABLE).write_text(table(found) + "\n")

    def panel(title: str, name: str, unit: str) -> plotting.Panel:
        lines = {}
        for window, label in (("last", "last k"), ("random", "a random window of k")):
            # The whole gradient is where either ends.
            chosen = [line for line in found[:-1] if line["window"] == window] + [found[-1]]
            lines[label] = ([x["steps"] for x in chosen], [x[name] for x in chosen])
        return plotting.Panel(title, lines, "steps differentiated through, k", unit)

    figure = plotting.comparison(
        [
            panel("bias (none of a random window)", "bias", "lengths of the whole gradient"),
            panel("spread from batch to batch", "spread", "lengths of the whole gradient"),
            panel("cost", "milliseconds", "ms / gradient"),
        ],
        title="Backpropagation through k of the steps",
        share_y=False,
    )
    plotting.save(figure, folder / _FIGURE)
    print(table(found))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.truncated_gradients", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--folder", type=Path, default=Path("runs/truncated"), help="where all goes")
    add("--num_steps", type=int, default=20, help="K")
    add("--lengths", type=runs.listed(int), default=[1, 2, 5, 10], help="k, besides K itself")
    add("--batch_size", type=int, default=128)
    add("--width", type=int, default=64)
    add("--train_steps", type=int, default=300)
    add("--num_batches", type=int, default=400)
    args = parser.parse_args(argv)
    for k in args.lengths:
        if not 1 <= k < args.num_steps:
            parser.error(f"--lengths={k}: must be from 1 to {args.num_steps - 1}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, measures and writes."""
    args = parse(argv)
    given = problem(args.num_steps, args.batch_size, args.width)
    train_key, key = jax.random.split(jax.random.key(0))
    params = train(given, train_key, args.train_steps)
    kinds = [Tracked(k, window) for window in samplers.WINDOWS for k in args.lengths]
    kinds.append(Tracked(args.num_steps))
    write(args.folder, measure(given, params, key, kinds, args.num_batches))


if __name__ == "__main__":
    main()
