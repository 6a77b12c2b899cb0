"""What PyTorch computed on narrow networks, kept so that the tests need no PyTorch.

A file holds the state dict as one row of numbers with a table of its names and shapes, which
takes a third of the room of an array each; the inputs; and the outputs.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

FOLDER = Path(__file__).parent / "fixtures"


class Fixture(NamedTuple):
    """A network with random weights and what it computes.

    Attributes:
        state_dict: Arrays by name, float32.
        inputs: Latents (n, dim), or pixels 0 ... 255 (n, height, width, channels).
        labels: Of class-conditional generators, (n, num_classes); else of size zero.
        outputs: Images (n, height, width, channels) or logits (n, num_classes).
        column_step: Of the images only every so many columns are kept.
    """

    state_dict: dict[str, np.ndarray]
    inputs: np.ndarray
    labels: np.ndarray
    outputs: np.ndarray
    column_step: int = 1


def save(name: str, fixture: Fixture) -> Path:
    """Writes `fixtures/NAME.npz`."""
    table = [[key, list(value.shape)] for key, value in fixture.state_dict.items()]
    row = np.concatenate([value.ravel() for value in fixture.state_dict.values()])
    path = FOLDER / f"{name}.npz"
    np.savez_compressed(
        path,
        names=np.frombuffer(json.dumps(table).encode(), np.uint8),
        row=row.astype(np.float32),
        inputs=fixture.inputs,
        labels=fixture.labels,
        outputs=fixture.outputs,
        column_step=fixture.column_step,
    )
    return path


def load(name: str) -> Fixture:
    """Reads `fixtures/NAME.npz`."""
    with np.load(FOLDER / f"{name}.npz") as file:
        content = dict(file)
    table = json.loads(content["names"].tobytes())
    sizes = [int(np.prod(shape)) for _, shape in table]
    parts = np.split(content["row"], np.cumsum(sizes)[:-1])
    state_dict = {
        key: part.reshape(shape) for (key, shape), part in zip(table, parts, strict=True)
    }
    return Fixture(
        state_dict,
        content["inputs"],
        content["labels"],
        content["outputs"],
        int(content["column_step"]),
    )
