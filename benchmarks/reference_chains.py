"""Long chains for targets of which no exact samples exist, and their log Z.

`python -m benchmarks.reference_chains --target=lennard_jones --folder=runs/reference_chains`
first moves particles from a Gaussian to the target by tempered sequential Monte Carlo, several
times over: each run estimates log Z, and their spread says how well. Its particles are the
starts of the chains, dispersed over the modes in about their true proportions: a few long ones
of NUTS, or many of HMC where there are modes that no chain leaves. Both are blackjax's. The
file `TARGET.npz` in the folder has the thinned draws, their energies, log Z and the
diagnostics, which are printed; where it exists already, they are only printed.

Split R̂ says whether chains agree, and above 1.01 they do not. Where they cannot, because none
leaves its mode, it is R̂ between the runs that counts: of all chains of a run taken together
(nested R̂, Margossian et al. 2022, arXiv:2110.13017), it sees modes that the runs found in
different proportions.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.diagnostics import effective_sample_size, potential_scale_reduction

from benchmarks import runs, tempering
from d2ejax.endpoints import Endpoint, make_endpoint
from d2ejax.typing import Array, Key, LogDensity

_QUANTILES = (0.05, 0.5, 0.95)


class Plan(NamedTuple):
    """How a target is sampled.

    Attributes:
        base_std: Deviation of the Gaussian that tempering starts from: about that of the
            target, or somewhat wider.
        modes: Whether there are modes that chains do not leave, and so many short chains.
        options: Options of the endpoint that differ from its own defaults.
    """

    base_std: float
    modes: bool = False
    options: Mapping[str, Any] = {}


PLANS = {
    "double_well_particles": Plan(3.0, modes=True),
    "lennard_jones": Plan(1.0, modes=True),
    "phi4": Plan(0.6),
    "log_gaussian_cox": Plan(1.0, options={"whitened": True}),
    "logistic_regression": Plan(1.0),
    # Of these all is known: they say what the procedure is worth.
    "double_wells": Plan(2.0, modes=True),
    "many_well": Plan(2.0, modes=True),
    "gaussian": Plan(2.0),
}


class Sizes(NamedTuple):
    """How much is done.

    Attributes:
        num_runs: Runs of sequential Monte Carlo.
        num_particles: Particles of each.
        num_moves: Steps of HMC between two temperatures.
        num_chains: Chains.
        num_warmup: Steps of adaptation, and as many again that each chain leaves out.
        num_draws: Draws kept of each chain.
        thinning: Steps from one of these to the next.
    """

    num_runs: int
    num_particles: int
    num_moves: int
    num_chains: int
    num_warmup: int
    num_draws: int
    thinning: int


LONG = {
    False: Sizes(8, 4096, 10, 8, 2000, 4000, 4),
    True: Sizes(8, 8192, 20, 1024, 1000, 200, 20),
}
QUICK = {False: Sizes(3, 256, 3, 6, 200, 200, 1), True: Sizes(3, 512, 5, 128, 200, 40, 5)}
"""Of targets without (False) and with modes (True)."""


class Chains(NamedTuple):
    """Draws `(num_chains, num_draws, dim)`, their acceptance rate, and what was adapted."""

    draws: np.ndarray
    acceptance: float
    num_divergent: int
    step_size: float


def run_chains(
    key: Key, target: Endpoint, starts: np.ndarray, modes: bool, sizes: Sizes
) -> Chains:
    """Chains of NUTS, or of HMC where there are modes, with the step that one chain adapted.

    Args:
        key: A key.
        target: Its log-density is used.
        starts: `(num_chains, dim)`.
        modes: Whether there are modes.
        sizes: How much is done.
    """
    log_density = _energy(target)
    algorithm = blackjax.hmc if modes else blackjax.nuts
    settings = {"num_integration_steps": tempering.LEAPFROGS} if modes else {}
    warm_key, chain_key = jax.random.split(key)
    adaptation = blackjax.window_adaptation(algorithm, log_density, **settings)
    adapted, _ = jax.jit(adaptation.run, static_argnums=2)(
        warm_key, jnp.asarray(starts[0]), sizes.num_warmup
    )
    kernel = algorithm(log_density, **adapted.parameters)

    def step(state: Any, key: Key) -> tuple[Any, Any]:
        state, info = kernel.step(key, state)
        return state, (info.acceptance_rate, info.is_divergent)

    def draw(state: Any, key: Key) -> tuple[Any, Any]:
        state, found = jax.lax.scan(step, state, jax.random.split(key, sizes.thinning))
        return state, (state.position, *found)

    @jax.jit
    @jax.vmap
    def chain(key: Key, start: Array) -> Any:
        left_out, kept = jax.random.split(key)
        state, _ = jax.lax.scan(
            step, kernel.init(start), jax.random.split(left_out, sizes.num_warmup)
        )
        return jax.lax.scan(draw, state, jax.random.split(kept, sizes.num_draws))[1]

    keys = jax.random.split(chain_key, len(starts))
    draws, acceptance, divergent = chain(keys, jnp.asarray(starts))
    return Chains(
        np.asarray(draws),
        float(jnp.mean(acceptance)),
        int(jnp.sum(divergent)),
        float(adapted.parameters["step_size"]),
    )


def _energy(target: Endpoint) -> LogDensity:
    if target.log_density is None:
        raise ValueError(f"endpoint {target.name!r} has no log-density")
    return target.log_density


def diagnose(values: np.ndarray, num_runs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split R̂, R̂ between the runs, and the effective sample size, of each column.

    Args:
        values: `(num_chains, num_draws, num_columns)`, chains in the order of their runs.
        num_runs: Number of runs.

    Returns:
        Three arrays `(num_columns,)`. Halves of a chain count as chains, so that split R̂ sees
        one that still drifts (Gelman et al. 2013, section 11.4).
    """
    half, num_columns = values.shape[1] // 2, values.shape[2]
    # R̂ and ESS do not know the mean; float32 does.
    values = values - values.mean(axis=(0, 1))
    halves = np.concatenate([values[:, :half], values[:, half : 2 * half]])
    found = (
        potential_scale_reduction(jnp.asarray(halves)),
        potential_scale_reduction(jnp.asarray(values.reshape(num_runs, -1, num_columns))),
        effective_sample_size(jnp.asarray(halves)),
    )
    split, nested, ess = (np.asarray(column, np.float64).reshape(-1) for column in found)
    return split, nested, ess


def log_mean(log_values: np.ndarray) -> tuple[float, float]:
    """The logarithm of a mean of `exp(log_values)`, and its standard error, in nats.

    Runs estimate Z without bias, and log Z with one that their mean has less of.
    """
    top = log_values.max()
    ratios = np.exp(log_values - top)
    error = ratios.std(ddof=1) / np.sqrt(len(ratios)) / ratios.mean()
    return float(top + np.log(ratios.mean())), float(error)


def measure(target: Endpoint, plan: Plan, sizes: Sizes, seed: int) -> dict[str, np.ndarray]:
    """Everything that the file has, but the settings."""
    began = time.monotonic()
    temper_key, chain_key = jax.random.split(jax.random.key(seed))
    step = tempering.level_step(_energy(target), plan.base_std, sizes.num_moves)
    shape = (sizes.num_particles, target.dim)
    tempered = []
    for own in jax.random.split(temper_key, sizes.num_runs):
        tempered.append(tempering.temper(own, step, plan.base_std, shape))
        shown = f"log Z = {tempered[-1].log_z:.3f} after {tempered[-1].num_levels} temperatures"
        print(f"{target.name}: {shown}", file=sys.stderr, flush=True)
    # Resampled particles are in the order of their ancestors: every so-manieth is of all.
    each = max(sizes.num_chains // sizes.num_runs, 1)
    chosen = np.linspace(0, sizes.num_particles - 1, each).round().astype(int)
    starts = np.concatenate([found.particles[chosen] for found in tempered])
    chains = run_chains(chain_key, target, starts, plan.modes, sizes)

    flat = chains.draws.reshape(-1, target.dim)
    energies = -np.asarray(jax.jit(jax.vmap(_energy(target)))(jnp.asarray(flat)), np.float64)
    counts = chains.draws.shape[:2]
    # The energy is diagnosed as one more coordinate, the last.
    columns = np.concatenate([chains.draws, energies.reshape(*counts, 1)], axis=2)
    split, nested, ess = diagnose(columns, sizes.num_runs)
    log_z_runs = np.array([found.log_z for found in tempered])
    log_z, error = log_mean(log_z_runs)
    # Draw by draw, and in each of them chain by chain.
    in_order = chains.draws.swapaxes(0, 1).reshape(flat.shape)
    found = {
        "samples": in_order,
        "energies": energies.reshape(counts).T.reshape(-1),
        "r_hat": split,
        "nested_r_hat": nested,
        "ess": ess,
        "acceptance": chains.acceptance,
        "num_divergent": chains.num_divergent,
        "step_size": chains.step_size,
        "log_z": log_z,
        "log_z_standard_error": error,
        "log_z_runs": log_z_runs,
        "num_levels": [one.num_levels for one in tempered],
        "seconds": time.monotonic() - began,
    }
    return {name: np.asarray(value) for name, value in found.items()}


def report(target: Endpoint, found: Mapping[str, np.ndarray]) -> str:
    """The diagnostics as a table, beside what is known exactly."""
    energies = found["energies"]
    low, middle, high = np.quantile(energies, _QUANTILES)
    error = energies.std() / np.sqrt(found["ess"][-1])
    rows = [
        ("draws", f"{len(energies)} of dimension {target.dim}"),
        ("split R̂, worst coordinate; energy", _worst(found["r_hat"], max, 4)),
        ("R̂ between the runs", _worst(found["nested_r_hat"], max, 4)),
        ("ESS", _worst(found["ess"], min, 0)),
        ("acceptance, divergent", f"{found['acceptance']:.3f}, {found['num_divergent']}"),
        ("energy, mean ± standard error", f"{energies.mean():.4f} ± {error:.4f}"),
        ("energy, quantiles 5, 50, 95 %", f"{low:.3f}, {middle:.3f}, {high:.3f}"),
        (
            "log Z ± standard error",
            f"{found['log_z']:.4f} ± {found['log_z_standard_error']:.4f}",
        ),
        ("log Z, runs", ", ".join(f"{value:.3f}" for value in found["log_z_runs"])),
        ("largest coordinate / extent", f"{_reach(target, found['samples']):.3f}"),
        ("seconds", f"{found['seconds']:.0f}"),
    ]
    if target.log_z is not None:
        rows.append(("log Z, exact", f"{target.log_z:.4f}"))
    return runs.markdown((target.name, ""), rows)


def _worst(values: np.ndarray, of: Callable[[Any], float], digits: int) -> str:
    """The worst of the coordinates, and the energy, the last."""
    return "; ".join(f"{value:.{digits}f}" for value in (of(values[:-1]), values[-1]))


def _reach(target: Endpoint, samples: np.ndarray) -> float:
    """How far out the draws are, 1 at the rim of the extent."""
    low, high = target.extent
    return float(np.abs(samples - 0.5 * (low + high)).max() / (0.5 * (high - low)))


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.reference_chains", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("--target", choices=sorted(PLANS), required=True)
    add("--options", type=json.loads, default={}, help="of the endpoint, in JSON")
    add(
        "--folder", type=Path, default=Path("runs/reference_chains"), help="where the file goes"
    )
    add("--seed", type=int, default=0)
    add("--quick", action="store_true", help="small, for an impression")
    add("--fresh", action="store_true", help="sample anew where there is a file")
    for name, kind in Sizes.__annotations__.items():
        add(f"--{name}", type=kind, default=None, help="instead of the target's own")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Samples the target unless it has been, and prints how well.

    Raises:
        SystemExit: If the options are refused, or the file there is of other settings.
    """
    args = parse(argv)
    plan = PLANS[args.target]
    options = {**plan.options, **args.options}
    try:
        target = make_endpoint(args.target, **options)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    sizes = (QUICK if args.quick else LONG)[plan.modes]
    given = {name: getattr(args, name) for name in Sizes._fields}
    sizes = sizes._replace(**{name: n for name, n in given.items() if n is not None})
    settings = json.dumps(
        {"target": args.target, "options": options, "seed": args.seed, **sizes._asdict()}
    )
    path = runs.reference_file(args.folder, args.target, args.options, quick=args.quick)
    if path.exists() and not args.fresh:
        found = dict(np.load(path))
        if str(found["settings"]) != settings:
            raise SystemExit(
                f"error: {path} is of other settings, {found['settings']}: give another"
                " --folder, or --fresh to lose it"
            )
    else:
        found = measure(target, plan, sizes, args.seed)
        save(path, {**found, "settings": np.asarray(settings)})
    print(report(target, found))


def save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a file that is there as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    with partial.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    os.replace(partial, path)


if __name__ == "__main__":
    main()
