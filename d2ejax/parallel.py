"""The one place that knows devices and processes: data-parallel, many steps a dispatch.

A run is cut into shards, each with a share of the batch, buffers and keys of its own;
parameters are the same for all. Usually every device has one shard. With a number of shards
that is given, what a run computes does not depend on how many devices there are, but for
rounding: shards of one device are its lanes, over which `vmap` maps the step as `pmap` does
over devices.

The leaves of a training state carry a leading axis of this process's devices, those of one
shard's own a second one of lanes where there is more than one.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from d2ejax.algorithms.base import Algorithm
from d2ejax.typing import Array, AxisName, Key

AXIS = "devices"
"""Name of the mapped axis of devices."""

LANES = "lanes"
"""Name of the mapped axis of a device's shards, where it has several."""

Backend = Literal["pmap", "shard_map"]
BACKENDS: tuple[Backend, ...] = ("pmap", "shard_map")

_PATIENCE = "xla_cpu_collective_call_terminate_timeout_seconds"
_PATIENCE_SECONDS = 1800
_DEVICE_COUNT_FLAG = "xla_force_host_platform_device_count"


class Trainer(NamedTuple):
    """A data-parallel algorithm.

    Attributes:
        init: Maps a key to the state of this process's devices.
        run: Maps the state and a number of gradient steps to the next state and the metrics'
            means over these steps, those left out in which a metric is not finite. One
            dispatch; any number of steps without recompiling. The state passed in is donated.
        gather: Maps the state to what is to be kept of it, the same in all processes, which
            must all ask: what the shards share once, what each has of its own with a leading
            axis of all shards.
        place: The inverse: maps what was gathered, and a state on the devices, to the next.
        own: The fields of the state that each shard has of its own.
        num_devices: How many devices share each batch, those of all processes.
        num_shards: Into how many parts it is cut.
        memory: Maps the shapes of a state to the bytes that `run` takes on each device, itself
            and what it returns included; compiles it.
    """

    init: Callable[[Key], Any]
    run: Callable[[Any, int], tuple[Any, dict[str, Array]]]
    gather: Callable[[Any], Any]
    place: Callable[[Any, Any], Any]
    own: tuple[str, ...]
    num_devices: int
    num_shards: int
    memory: Callable[[Any], int]


def data_parallel(
    algorithm: Algorithm,
    *,
    backend: Backend = "pmap",
    devices: Sequence[jax.Device] | None = None,
    num_shards: int = 0,
) -> Trainer:
    """Trains one algorithm over the devices of all processes (one included).

    Args:
        algorithm: Made for the mapped axis `axis(num_shards, num_devices)`.
        backend: "pmap", or the same step under "shard_map" on a mesh of Auto axes.
        devices: The devices; all of them by default.
        num_shards: Into how many parts the batch is cut, a multiple of the number of devices;
            0 for one on each.

    Returns:
        The trainer.

    Raises:
        ValueError: If the backend is unknown, or the shards cannot be shared out.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend = {backend!r}: must be one of {BACKENDS}")
    devices = list(jax.devices() if devices is None else devices)
    lanes, rest = divmod(num_shards or len(devices), len(devices))
    if rest or not lanes:
        raise ValueError(
            f"num_shards = {num_shards}: must be a multiple of {len(devices)}, the number of "
            "devices, or 0"
        )
    init, step = algorithm.init, algorithm.step
    if lanes > 1:
        init, step = _init_lanes(algorithm, lanes), _step_lanes(algorithm)
    map_devices = _pmap if backend == "pmap" else _shard_map
    start = map_devices(init, devices, donate=False)
    many: Any = map_devices(_many_steps(step), devices, donate=True)
    local = sum(device.process_index == jax.process_index() for device in devices)

    def run(state: Any, num_steps: int) -> tuple[Any, dict[str, Array]]:
        state, metrics = many(state, _spread(jnp.int32(num_steps), local))
        return state, unreplicate(metrics)

    def memory(state: Any) -> int:
        counts = jax.ShapeDtypeStruct((local,), jnp.int32)
        found = many.lower(state, counts).compile().memory_analysis()
        taken = found.argument_size_in_bytes + found.output_size_in_bytes
        return taken - found.alias_size_in_bytes + found.temp_size_in_bytes

    return Trainer(
        lambda key: start(_spread(key, local)),
        run,
        partial(_gather, algorithm.own, lanes),
        partial(_place, algorithm.own, lanes),
        algorithm.own,
        len(devices),
        lanes * len(devices),
        memory,
    )


def axis(shards: int, devices: int) -> AxisName:
    """The mapped axis, or axes, that an algorithm is to be made for.

    Args:
        shards: Number of shards; 0 for one on each device.
        devices: Number of devices.
    """
    return AXIS if shards in (0, devices) else (AXIS, LANES)


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


def join(
    coordinator: str | None = None,
    *,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Makes this process one of several that train together; before JAX first runs.

    Args:
        coordinator: `host:port` of the first process, or None to learn everything from the
            environment of a cluster that JAX knows (Slurm, TPU pods, GKE, Open MPI).
        num_processes: How many there are.
        process_id: Which of them this is, from 0.

    Raises:
        ValueError: If there is no such environment.
        RuntimeError: If JAX has begun to run, or the others cannot be reached.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _PATIENCE not in flags:
        # On a CPU a process whose partner compiles, or solves for an exact bridge, gives up.
        os.environ["XLA_FLAGS"] = f"{flags} --{_PATIENCE}={_PATIENCE_SECONDS}"
    # Programs of a CPU that run side by side mix up what their collectives send each other.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    # Each device of a CPU holds a thread while it waits for the others.
    os.environ.setdefault("NPROC", str(max(16, os.cpu_count() or 1)))
    # It would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator_address=coordinator, num_processes=num_processes, process_id=process_id
    )


def num_devices() -> int:
    """How many devices share each batch, those of all processes."""
    return jax.device_count()


def is_first() -> bool:
    """Whether this is the process that writes what is written once, and prints."""
    return jax.process_index() == 0


def agreed(flag: bool) -> bool:
    """Whether the flag of any process is set; all of them must ask."""
    if jax.process_count() == 1:
        return flag
    return _highest(int(flag)) == 1


def same(number: int) -> bool:
    """Whether all processes have the same number, of 31 bits; all of them must ask."""
    return jax.process_count() == 1 or _highest(number) == -_highest(-number)


def _highest(number: int) -> int:
    """The highest of the numbers of all processes."""
    mine = jnp.full(jax.local_device_count(), number, jnp.int32)
    return int(_over_all("pmax", mine)[0])


def _over_all(name: str, x: Array) -> Array:
    """A collective of all devices, by what training lives on; none is under way after it."""
    return jax.block_until_ready(_mapped(name)(x))


@functools.cache
def _mapped(name: str) -> Callable[[Array], Array]:
    return jax.pmap(partial(getattr(jax.lax, name), axis_name=AXIS), axis_name=AXIS)


def wait() -> None:
    """Waits until all processes are here."""
    agreed(False)


def on_cpu() -> bool:
    """Whether the devices of this process are its CPU's."""
    return jax.local_devices()[0].platform == "cpu"


def describe_devices() -> str:
    """The devices of all processes in words, such as "2 x cpu"."""
    return f"{num_devices()} x {jax.local_devices()[0].device_kind}"


def unreplicate(tree: Any) -> Any:
    """The first device's share of a tree whose leaves have a leading device axis."""
    return jax.tree.map(lambda leaf: leaf[0], tree)


def _axes(state: Any, own: Sequence[str]) -> Any:
    """The mapped axis of each field of a state; none of what is no shard's own."""
    return type(state)(**{name: 0 if name in own else None for name in state._fields})


def _init_lanes(algorithm: Algorithm, lanes: int) -> Callable:
    """The state of one device: what its lanes share, and what each has of its own."""

    def init(key):
        start = partial(
            jax.vmap, algorithm.init, in_axes=None, axis_name=LANES, axis_size=lanes
        )
        return start(out_axes=_axes(jax.eval_shape(start(), key), algorithm.own))(key)

    return init


def _step_lanes(algorithm: Algorithm) -> Callable:
    """The step of one device; what its lanes share is computed once."""

    def step(state):
        axes = _axes(state, algorithm.own)
        state, metrics = jax.vmap(
            algorithm.step, in_axes=(axes,), out_axes=(axes, 0), axis_name=LANES
        )(state)
        # Like that of the first device, the first lane's share.
        return state, unreplicate(metrics)

    return step


def _gather(own: Sequence[str], lanes: int, state: Any) -> Any:
    """See `Trainer.gather`."""

    def joined(leaf: Array) -> Array:
        flat = leaf.reshape(-1, *leaf.shape[2:]) if lanes > 1 else leaf
        if jax.process_count() == 1:
            return flat
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                of_all(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
            )
        return of_all(leaf)

    def of_all(leaf: Array) -> Array:
        return _over_all("all_gather", leaf)[0].reshape(
            -1, *leaf.shape[2 if lanes > 1 else 1 :]
        )

    fields = {
        name: jax.tree.map(joined, value) if name in own else unreplicate(value)
        for name, value in state._asdict().items()
    }
    return type(state)(**fields)


def _place(own: Sequence[str], lanes: int, gathered: Any, like: Any) -> Any:
    """See `Trainer.place`."""

    def shared(leaf: Array, there: Array) -> Array:
        return _put(_spread(leaf, there.shape[0]), there)

    def split(leaf: Array, there: Array) -> Array:
        count = there.shape[0] * lanes
        mine = leaf[jax.process_index() * count :][:count]
        return _put(mine.reshape(there.shape), there)

    fields = {
        name: jax.tree.map(split if name in own else shared, value, getattr(like, name))
        for name, value in gathered._asdict().items()
    }
    return type(like)(**fields)


def _put(leaf: Array, like: Array) -> Array:
    # No aliasing: the state may be donated, and this memory is not ours to give.
    return jax.device_put(leaf, like.sharding, may_alias=False)


def _many_steps(step: Callable) -> Callable:
    """Runs a traced number of steps and averages their metrics."""

    def run(state, num_steps):
        shapes = jax.eval_shape(step, state)[1]
        zeros = {name: jnp.zeros((2, *leaf.shape), leaf.dtype) for name, leaf in shapes.items()}

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
    jitted = jax.jit(mapped, donate_argnums=(0,) if donate else ())
    if jax.process_count() == 1:
        return jitted
    here = Mesh(np.asarray(mesh.local_devices), (AXIS,), axis_types=(AxisType.Auto,))

    def on_all(*local):
        # Like pmap, which takes and gives what this process's devices have; what comes from the
        # host lies on the first of them.
        local = jax.device_put(local, NamedSharding(here, spec))
        return _over(jitted(*_over(local, mesh, len(devices))), here, here.size)

    return on_all


def _over(tree: Any, mesh: Mesh, size: int) -> Any:
    """The same arrays on the same devices, as shares of what another mesh holds."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def moved(leaf: Array) -> Array:
        shares = [shard.data for shard in leaf.addressable_shards]
        shape = (size, *leaf.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, shares)

    return jax.tree.map(moved, tree)
