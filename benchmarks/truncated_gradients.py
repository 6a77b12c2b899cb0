"""What backpropagation through the last k steps alone costs, and what it gives.

`python -m benchmarks.truncated_gradients --folder=runs/truncated` trains a diffusion sampler of
a ring of Gaussians by the path-wise KL for a while and then compares, at those parameters and
on the same paths, the gradient through the last k of K steps with the whole one: its bias and
its spread from batch to batch, in units of the whole gradient's length, their angle, and the
milliseconds of each, interleaved. It leaves results.json, results.md and truncated.png.
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
from d2ejax.algorithms.base import Model, gradient_step, init_model
from d2ejax.kernels import Process
from d2ejax.typing import Array, Key, Params
from experiments import workdir

_T_MAX, _START = 1.0, 1e-3
_FIGURE, _TABLE, _RECORD = "truncated.png", "results.md", "results.json"
_COLUMNS = ("last steps k", "bias", "spread", "cosine", "ms / gradient")


class Problem(NamedTuple):
    """A sampler trained by the path-wise KL.

    Attributes:
        process: The process.
        init: Maps a key to its parameters.
        loss: Maps `(params, key, tracked_steps)` to the loss on one batch.
    """

    process: Process
    init: Callable[[Key], Params]
    loss: Callable[[Params, Key, int], Array]


def problem(num_steps: int, batch_size: int, width: int) -> Problem:
    """From a fixed start to a ring of eight Gaussians, around Brownian motion."""
    law, grid = references.brownian(1.0), time_grids.end_refined(num_steps, _T_MAX)
    network, target = networks.drift_network(2, _T_MAX, width=width), endpoints.ring()
    process = kernels.process(network.apply, law, grid)
    reference = kernels.reference_process(law, grid)
    marginals = references.gaussian_marginals(law, grid, mean=jnp.zeros(2), variance=_START**2)

    def loss(params: Params, key: Key, tracked_steps: int) -> Array:
        start_key, path_key = jax.random.split(key)
        starts = _START * jax.random.normal(start_key, (batch_size, 2))
        simulate = functools.partial(rollouts.simulate, tracked_steps=tracked_steps)
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
            return given.loss(params, key, given.process.num_steps), {}

        return gradient_step(loss, model, optimiser, decay=0.0, axis_name=None)[0], None

    @jax.jit
    def run(key: Key) -> Params:
        init_key, step_key = jax.random.split(key)
        model = init_model(given.init(init_key), optimiser)
        return jax.lax.scan(step, model, jax.random.split(step_key, num_steps))[0].params

    return run(key)


def measure(
    given: Problem, params: Params, key: Key, lengths: Sequence[int], num_batches: int
) -> list[dict[str, float]]:
    """Moments and cost of the gradient for each number of steps; the last is the whole one."""
    gradients = {
        k: jax.jit(
            lambda params, key, k=k: jax.flatten_util.ravel_pytree(
                jax.grad(given.loss)(params, key, k)
            )[0]
        )
        for k in lengths
    }
    for gradient in gradients.values():
        jax.block_until_ready(gradient(params, key))
    found: dict[int, list[np.ndarray]] = {k: [] for k in lengths}
    seconds = dict.fromkeys(lengths, float("inf"))
    # Interleaved, and the same paths for all.
    for batch_key in jax.random.split(key, num_batches):
        for k, gradient in gradients.items():
            start = time.perf_counter()
            value = jax.block_until_ready(gradient(params, batch_key))
            seconds[k] = min(seconds[k], time.perf_counter() - start)
            found[k].append(np.asarray(value, np.float64))
    stacked = {k: np.stack(values) for k, values in found.items()}
    return [moments(k, stacked[k], stacked[lengths[-1]], seconds[k]) for k in lengths]


def moments(
    length: int, gradients: np.ndarray, whole: np.ndarray, seconds: float
) -> dict[str, float]:
    """Bias, spread and angle of gradients `(num_batches, num_params)`, beside whole ones.

    The bias is that of the mean over all batches: of the same paths, so that most of the noise
    of the two means is one and cancels; what is left of it is taken off the square.
    """
    mean, truth = gradients.mean(axis=0), whole.mean(axis=0)
    n, size = len(gradients), float(np.linalg.norm(truth))
    difference = gradients - whole
    noise = float(difference.var(axis=0, ddof=1).sum()) / n
    bias = max(float(np.sum((mean - truth) ** 2)) - noise, 0.0) ** 0.5
    return {
        "steps": float(length),
        "bias": bias / size,
        "spread": float(gradients.var(axis=0, ddof=1).sum()) ** 0.5 / size,
        "cosine": float(mean @ truth / (np.linalg.norm(mean) * size)),
        "milliseconds": 1e3 * seconds,
    }


def table(found: Sequence[dict[str, float]]) -> str:
    """A line for each number of steps."""
    rows = (
        [
            f"{line['steps']:.0f}",
            runs.number(line["bias"]),
            runs.number(line["spread"], 2),
            runs.number(line["cosine"]),
            runs.number(line["milliseconds"], 2),
        ]
        for line in found
    )
    return runs.markdown(_COLUMNS, rows)


def write(folder: Path, found: Sequence[dict[str, float]]) -> None:
    """Writes the record, the table and the figure, and prints the table."""
    folder.mkdir(parents=True, exist_ok=True)
    workdir.write_json(folder / _RECORD, {"lengths": list(found)})
    (folder / _TABLE).write_text(table(found) + "\n")
    steps = [line["steps"] for line in found]

    def panel(title: str, **names: str) -> plotting.Panel:
        lines = {name: (steps, [line[key] for line in found]) for name, key in names.items()}
        return plotting.Panel(title, lines, "steps differentiated through, k", title)

    figure = plotting.comparison(
        [
            panel("error / length of the whole gradient", bias="bias", spread="spread"),
            panel("ms / gradient", cost="milliseconds"),
        ],
        title="Backpropagation through the last k steps",
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
    lengths = [*args.lengths, args.num_steps]
    write(args.folder, measure(given, params, key, lengths, args.num_batches))


if __name__ == "__main__":
    main()
