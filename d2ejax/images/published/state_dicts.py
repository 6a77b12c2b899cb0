"""State dicts of PyTorch as variables of flax: read, renamed, their axes in our order.

Each architecture has a table of layers: what a layer is called there and here, and of which
kind it is. Every array of the state dict must be in the table and every variable of the module
be filled from it, in its shape: a network with a wrong or a missing layer is never made.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from d2ejax.typing import Array

_TORCH = (".pt", ".pth", ".tar", ".ckpt", ".bin")
_ENTRIES = ("state_dict", "model_state_dict", "net")
"""Where the files of training loops keep the network, beside optimiser and step."""

_SPECTRAL_NORM = (
    ("weight_orig", "weight_u", "weight_v"),
    ("parametrizations.weight.original", *(f"parametrizations.weight.0._{x}" for x in "uv")),
)
"""The weight and its left and right singular vectors, in the old form and in the new."""


class Imported(NamedTuple):
    """A network and its weights: `module.apply(variables, inputs)`.

    Attributes:
        module: The architecture, its sizes those of the state dict.
        variables: Its parameters, batch statistics and buffers, float32.
    """

    module: nn.Module
    variables: dict[str, Any]


class Leaf(NamedTuple):
    """One array of a layer.

    Attributes:
        theirs: Its name after that of the layer, as "weight".
        collection: Of flax: "params", "batch_stats" or "buffers".
        ours: Its name in flax, as "kernel"; None for what no output depends on.
        convert: From their array to ours; may refuse one by a `ValueError`.
    """

    theirs: str
    collection: str
    ours: str | None
    convert: Callable[[np.ndarray], np.ndarray]


class Layer(NamedTuple):
    """One layer.

    Attributes:
        theirs: Its name in the state dict, as "layer1.0.conv1".
        ours: The names of the modules that lead to it in flax, joined by "/"; may be empty.
        leaves: Its arrays. Those that neither side has, as a bias, are no matter.
    """

    theirs: str
    ours: str
    leaves: tuple[Leaf, ...]


def read(
    path: str | Path, *, entry: str | None = None, prefix: str = ""
) -> dict[str, np.ndarray]:
    """Reads the arrays of a checkpoint by name; executes no code of the file.

    Args:
        path: A file of `torch.save` (.pt, .pth, .tar, .ckpt, .bin; needs PyTorch, which reads
            it with `weights_only=True`), of `numpy.savez` (.npz), or .safetensors (needs
            safetensors).
        entry: Where in the file the state dict is, if the file holds more. By default the file
            is a state dict, or has one as "state_dict", "model_state_dict" or "net".
        prefix: Keeps the arrays whose names start so, and leaves it off: "generator." reads
            one of two networks that were saved together.

    Returns:
        Arrays by name.

    Raises:
        ValueError: If the file is of another kind or holds no state dict there.
        ModuleNotFoundError: If what reads it is not installed.
    """
    path = Path(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as content:
            loaded: Any = dict(content)
    elif path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        loaded = load_file(path)
    elif path.suffix in _TORCH:
        loaded = _load_torch(path)
    else:
        raise ValueError(
            f"{path}: must end in one of {', '.join((*_TORCH, '.npz', '.safetensors'))}: "
            "a pickle would execute code: save the state dict of the network in it"
        )
    found = _entry_of(path, loaded, entry)
    arrays = {k[len(prefix) :]: _numpy(v) for k, v in found.items() if k.startswith(prefix)}
    if not arrays:
        raise ValueError(f"{path}: prefix = {prefix!r}: no name starts so: {_few(found)}")
    return arrays


def _load_torch(path: Path) -> Any:
    import pickle

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: holds more than arrays, which could execute code: save the state dict of "
            "the network in it, where you trust the file"
        ) from error


def _entry_of(path: Path, loaded: Any, entry: str | None) -> Mapping[str, Any]:
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path}: is a {type(loaded).__name__}: must be a state dict")
    inner = [name for name, value in loaded.items() if isinstance(value, Mapping)]
    if entry is None and not inner:
        return loaded
    known = [name for name in _ENTRIES if name in inner] if entry is None else [entry]
    if len(known) != 1 or known[0] not in inner:
        raise ValueError(f"{path}: entry = {entry!r}: must be one of {_few(inner)}")
    return loaded[known[0]]


def plain(state_dict: Mapping[str, Any], *, output_axis: int = 0) -> dict[str, np.ndarray]:
    """The arrays of a network as its layers use them, float32.

    Names lose the `module.` of data-parallel training. Spectral norm is folded in: where a
    weight W comes with its singular vectors u and v it is replaced by W / uᵀWv, which is what
    the layer multiplies by in evaluation (Miyato et al. 2018, arXiv:1802.05957).

    Args:
        state_dict: Arrays of NumPy or tensors of PyTorch by name.
        output_axis: Which axis of those weights counts outputs: 1 in transposed convolutions.

    Returns:
        Arrays by name.
    """
    arrays = {}
    for name, value in state_dict.items():
        while name.startswith("module."):
            name = name.removeprefix("module.")
        arrays[name] = _numpy(value)
    for suffixes in _SPECTRAL_NORM:
        for name in [name for name in arrays if name.endswith(f".{suffixes[0]}")]:
            layer = name.removesuffix(suffixes[0])
            if not all(layer + suffix in arrays for suffix in suffixes):
                continue  # What is left of it is reported as unknown.
            weight, u, v = (arrays.pop(layer + suffix) for suffix in suffixes)
            matrix = np.moveaxis(weight, output_axis, 0).reshape(weight.shape[output_axis], -1)
            if (*u.shape, *v.shape) != matrix.shape:
                raise ValueError(
                    f"{name}: shape = {weight.shape}: has singular vectors of shapes "
                    f"{u.shape} and {v.shape}: must be ({matrix.shape[0]},) and "
                    f"({matrix.shape[1]},)"
                )
            arrays[f"{layer}weight"] = weight / (u @ matrix @ v)
    return arrays


def shape(arrays: Mapping[str, np.ndarray], name: str, ndim: int) -> tuple[int, ...]:
    """The shape of an array that the sizes of a network are read off.

    Raises:
        ValueError: If there is no such array, or it has not `ndim` axes.
    """
    if name not in arrays:
        raise ValueError(f"state dict: {name!r} is missing: it has {_few(arrays)}")
    if arrays[name].ndim != ndim:
        raise ValueError(f"{name}: shape = {arrays[name].shape}: must have {ndim} axes")
    return arrays[name].shape


def fill(
    arrays: Mapping[str, np.ndarray], layers: Sequence[Layer], module: nn.Module, *inputs: Array
) -> Imported:
    """Fills the variables of a module.

    Args:
        arrays: By name, see `plain`.
        layers: Where each of them goes.
        module: The architecture.
        inputs: Of the module, for the shapes of its variables.

    Returns:
        The module and its variables.

    Raises:
        ValueError: Naming the arrays that no layer has, that are missing, or whose shape is
            not that of the module.
    """
    left, names, filled = dict(arrays), {}, {}
    for layer in layers:
        for leaf in layer.leaves:
            name = f"{layer.theirs}.{leaf.theirs}"
            inner = layer.ours.split("/") if layer.ours else []
            path = (leaf.collection, *inner, leaf.ours or "")
            names[path] = name
            if name in left:
                value = _converted(name, leaf, left.pop(name))
                if leaf.ours:
                    filled[path] = value
    expected = flatten_dict(jax.eval_shape(module.init, jax.random.key(0), *inputs))
    title = (
        f"state dict of {type(module).__module__.rpartition('.')[2]}.{type(module).__name__}"
    )
    unknown = [*left, *(names[path] for path in filled if path not in expected)]
    missing = [names[path] for path in expected if path not in filled]
    if unknown or missing:
        raise ValueError(
            f"{title}: missing: {_few(missing)}; unknown: {_few(unknown)}: must have each "
            "array of the network and no other"
        )
    for path, value in filled.items():
        if value.shape != expected[path].shape:
            raise ValueError(
                f"{title}: {names[path]}: shape = {arrays[names[path]].shape}: gives "
                f"{value.shape}, must give {expected[path].shape}"
            )
    return Imported(module, unflatten_dict(jax.tree.map(jax.numpy.asarray, filled)))


def _converted(name: str, leaf: Leaf, value: np.ndarray) -> np.ndarray:
    try:
        return leaf.convert(value)
    except ValueError as error:
        raise ValueError(f"{name}: shape = {value.shape}: {error}") from error


def unchanged(value: np.ndarray) -> np.ndarray:
    """The array itself."""
    return value


def conv(theirs: str, ours: str) -> Layer:
    """A convolution: kernels from (out, in, height, width) to (height, width, in, out)."""
    return _weighted(theirs, ours, lambda weight: weight.transpose(2, 3, 1, 0))


def conv_transpose(theirs: str, ours: str) -> Layer:
    """A transposed convolution, from (in, out, height, width).

    PyTorch's is the transpose of a convolution, flax's a convolution of the image with zeros
    put between its pixels: the one's kernel is the other's turned by 180°.
    """
    return _weighted(
        theirs, ours, lambda weight: weight[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)
    )


def linear(theirs: str, ours: str) -> Layer:
    """A dense layer: kernels from (out, in) to (in, out)."""
    return _weighted(theirs, ours, np.transpose)


def linear_to_image(theirs: str, ours: str, size: int) -> Layer:
    """A dense layer whose outputs are an image, there (channels, size, size), here last."""

    def channels_last(value: np.ndarray) -> np.ndarray:
        image = value.reshape(-1, size, size, *value.shape[1:])
        return np.moveaxis(image, 0, 2).reshape(value.shape)

    return _weighted(theirs, ours, lambda weight: channels_last(weight).T, channels_last)


def batch_norm(theirs: str, ours: str) -> Layer:
    """A batch norm and its running statistics; the count of batches is left out."""
    leaves = (
        Leaf("weight", "params", "scale", unchanged),
        Leaf("bias", "params", "bias", unchanged),
        Leaf("running_mean", "batch_stats", "mean", unchanged),
        Leaf("running_var", "batch_stats", "var", unchanged),
        Leaf("num_batches_tracked", "batch_stats", None, unchanged),
    )
    return Layer(theirs, ours, leaves)


def _weighted(
    theirs: str,
    ours: str,
    weight: Callable[[np.ndarray], np.ndarray],
    bias: Callable[[np.ndarray], np.ndarray] = unchanged,
) -> Layer:
    leaves = (Leaf("weight", "params", "kernel", weight), Leaf("bias", "params", "bias", bias))
    return Layer(theirs, ours, leaves)


def _numpy(value: Any) -> np.ndarray:
    # NumPy has no bfloat16, in which some networks are saved.
    if hasattr(value, "detach"):
        value = value.detach().cpu().float().numpy()
    return np.asarray(value, np.float32)


def _few(names: Collection[str]) -> str:
    shown = list(names)[:6]
    return ", ".join(shown) + (" ..." if len(names) > len(shown) else "") or "none"
