"""The one place that knows devices: data-parallel training, many steps per dispatch.

Parameters are replicated, batches, buffers and keys are per device, and the algorithm averages
gradients over the axis named here. All leaves of a training state carry a leading device axis.
"""

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from d2ejax.algorithms.base import Algorithm
from d2ejax.typing import Array, Key

AXIS = "devices"
"""Name of the mapped axis; hand it to the algorithm, whose `lax.pmean` runs over it."""

Backend = Literal["pmap", "shard_map"]
BACKENDS: tuple[Backend, ...] = ("pmap", "shard_map")

_DEVICE_COUNT_FLAG = "xla_force_host_platform_device_count"


class Trainer(NamedTuple):
    """A data-parallel algorithm.

    Attributes:
        init: Maps a key to the state of all devices.
        run: Maps the state and a number of gradient steps to the next state and the metrics'
            means over these steps, those left out in which a metric is not finite. One
            dispatch; any number of steps without recompiling. The state passed in is donated.
        num_devices: How many devices share each batch.
    """

    init: Callable[[Key], Any]
    run: Callable[[Any, int], tuple[Any, dict[str, Array]]]
    num_devices: int


def data_parallel(
    algorithm: Algorithm,
    *,
    backend: Backend = "pmap",
    devices: Sequence[jax.Device] | None = None,
) -> Trainer:
    """Trains one algorithm over the local devices (one included).

    Args:
        algorithm: Made for the mapped axis `AXIS`.
        backend: "pmap", or the same step under "shard_map" on a mesh of Auto axes.
        devices: The devices; all local ones by default.

    Returns:
        The trainer.

    Raises:
        ValueError: If the backend is unknown.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend = {backend!r}: must be one of {BACKENDS}")
    devices = list(jax.local_devices() if devices is None else devices)
    map_devices = _pmap if backend == "pmap" else _shard_map
    init = map_devices(algorithm.init, devices, donate=False)
    many = map_devices(_many_steps(algorithm.step), devices, donate=True)

    def run(state: Any, num_steps: int) -> tuple[Any, dict[str, Array]]:
        state, metrics = many(state, _spread(jnp.int32(num_steps), len(devices)))
        return state, unreplicate(metrics)

    return Trainer(lambda key: init(_spread(key, len(devices))), run, len(devices))


def cut_cpu(count: int) -> None:
    """Cuts the CPU into devices that share each batch; accelerators are left as they are.

    XLA runs the operations of a small batch one after the other and splits few of them over
    its threads, so that two devices on two cores take less time than one. To be called before
    JAX first runs: what it has been told about the CPU's devices, or has begun to run with,
    stands.

    Args:
        count: Number of devices.
    """
    told = jax.config.jax_num_cpu_devices >= 0  # type: ignore[attr-defined]
    if told or _DEVICE_COUNT_FLAG in os.environ.get("XLA_FLAGS", ""):
        return
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)


def num_devices() -> int:
    """How many devices of this process share each batch."""
    return jax.local_device_count()


def on_cpu() -> bool:
    """Whether the devices of this process are its CPU's."""
    return jax.local_devices()[0].platform == "cpu"


def describe_devices() -> str:
    """The devices of this process in words, such as "2 x cpu"."""
    return f"{num_devices()} x {jax.local_devices()[0].device_kind}"


def unreplicate(tree: Any) -> Any:
    """The first device's share of a tree whose leaves have a leading device axis."""
    return jax.tree.map(lambda leaf: leaf[0], tree)


def _many_steps(step: Callable) -> Callable:
    """Runs a traced number of steps and averages their metrics."""

    def run(state, num_steps):
        shapes = jax.eval_shape(step, state)[1]
        zeros = {name: jnp.zeros((2,), leaf.dtype) for name, leaf in shapes.items()}

        def body(_, carry):
            state, totals = carry
            state, metrics = step(state)
            return state, {name: totals[name] + _counted(metrics[name]) for name in totals}

        state, totals = jax.lax.fori_loop(0, num_steps, body, (state, zeros))
        return state, {name: total / count for name, (total, count) in totals.items()}

    return run


def _counted(metric: Array) -> Array:
    """A metric and a one, or two zeros for one that does not apply in this step."""
    finite = jnp.isfinite(metric)
    return jnp.stack([jnp.where(finite, metric, 0.0), finite.astype(metric.dtype)])


def _spread(leaf: Array, count: int) -> Array:
    return jnp.broadcast_to(leaf[None], (count, *leaf.shape))


def _pmap(function: Callable, devices: list[jax.Device], *, donate: bool) -> Callable:
    return jax.pmap(
        function, axis_name=AXIS, devices=devices, donate_argnums=(0,) if donate else ()
    )


def _shard_map(function: Callable, devices: list[jax.Device], *, donate: bool) -> Callable:
    mesh = jax.make_mesh((len(devices),), (AXIS,), (AxisType.Auto,), devices=devices)

    def on_one(*blocks):
        result = function(*jax.tree.map(lambda leaf: leaf[0], blocks))
        return jax.tree.map(lambda leaf: leaf[None], result)

    spec = PartitionSpec(AXIS)
    # The replication checker does not know that a switch on a replicated counter is uniform.
    mapped = jax.shard_map(on_one, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return jax.jit(mapped, donate_argnums=(0,) if donate else ())
