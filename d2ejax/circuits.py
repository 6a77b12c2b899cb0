"""Gene circuits: simulated expression of cells whose regulatory graph is known.

Each gene is made at a rate that its regulators set, and decays in proportion to what there is:

    dX_j = (f_j(X) - X_j) dt + σ dW_j,

in units of its lifetime, with f_j in [0, 1], so that levels are between 0 and 1 but for the
noise. Boolean rules of a published circuit become continuous as in Wittmann et al. (2009, BMC
Syst. Biol. 3:98): a level x ≥ 0 is true to the degree x^n / (x^n + θ^n), a Hill function, and
the rule is interpolated linearly in each of these degrees. Simulators of single cells do the
same (BoolODE: Pratapa et al. 2020, Nat. Methods 17:147), with messengers and proteins apart and
noise that grows with √x; here one level stands for both and the noise is additive, as that of
the references is.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

Rule = Callable[..., Floats]
"""Maps the degrees to which a gene's regulators are present to that of its production."""


class Circuit(NamedTuple):
    """A gene circuit, on the host.

    Attributes:
        genes: Their names.
        edges: Whether gene i (row) regulates gene j (column), `(dim, dim)`. Its decay makes no
            gene a regulator of itself.
        production: f, maps levels `(..., dim)` to `(..., dim)` in [0, 1].
        start: The levels that cells start around, `(dim,)`.
    """

    genes: tuple[str, ...]
    edges: npt.NDArray[np.bool_]
    production: Callable[[Floats], Floats]
    start: Floats

    @property
    def dim(self) -> int:
        """The number of genes."""
        return len(self.genes)

    def drift(self, x: Floats) -> Floats:
        """f(x) - x, of the shape of x, `(..., dim)`, per lifetime."""
        return self.production(x) - x


def _or(a: Floats, b: Floats) -> Floats:
    return a + b - a * b


# No rule names a regulator twice: as products and sums they are linear in each degree.
_MYELOID: dict[str, tuple[tuple[str, ...], Rule]] = {
    "Gata2": (
        ("Gata2", "Gata1", "Fog1", "Pu1"),
        lambda gata2, gata1, fog1, pu1: gata2 * (1 - gata1 * fog1) * (1 - pu1),
    ),
    "Gata1": (
        ("Gata1", "Gata2", "Fli1", "Pu1"),
        lambda gata1, gata2, fli1, pu1: _or(_or(gata1, gata2), fli1) * (1 - pu1),
    ),
    "Fog1": (("Gata1",), lambda gata1: gata1),
    "Eklf": (("Gata1", "Fli1"), lambda gata1, fli1: gata1 * (1 - fli1)),
    "Fli1": (("Gata1", "Eklf"), lambda gata1, eklf: gata1 * (1 - eklf)),
    "Scl": (("Gata1", "Pu1"), lambda gata1, pu1: gata1 * (1 - pu1)),
    "Cebpa": (
        ("Cebpa", "Gata1", "Fog1", "Scl"),
        lambda cebpa, gata1, fog1, scl: cebpa * (1 - gata1 * fog1 * scl),
    ),
    "Pu1": (
        ("Cebpa", "Pu1", "Gata1", "Gata2"),
        lambda cebpa, pu1, gata1, gata2: _or(cebpa, pu1) * (1 - _or(gata1, gata2)),
    ),
    "cJun": (("Pu1", "Gfi1"), lambda pu1, gfi1: pu1 * (1 - gfi1)),
    "EgrNab": (("Pu1", "cJun", "Gfi1"), lambda pu1, cjun, gfi1: pu1 * cjun * (1 - gfi1)),
    "Gfi1": (("Cebpa", "EgrNab"), lambda cebpa, egrnab: cebpa * (1 - egrnab)),
}


def myeloid(*, hill: float = 4.0, threshold: float = 0.35) -> Circuit:
    """The eleven transcription factors by which blood cells choose their lineage.

    From the common myeloid progenitor, which has Gata2, Cebpa and Pu1, cells become
    erythrocytes (Eklf), megakaryocytes (Fli1), granulocytes (Gfi1) or monocytes (cJun, EgrNab):
    26 edges, and four genes that regulate themselves (Krumsiek et al. 2011, PLoS ONE
    6:e22649). With the default threshold all four lineages are populated.

    Args:
        hill: Exponent n of the Hill functions.
        threshold: Level θ at which a gene counts as half present.

    Returns:
        The circuit.
    """
    genes = tuple(_MYELOID)
    regulators = [[genes.index(name) for name in names] for names, _ in _MYELOID.values()]
    rules = [rule for _, rule in _MYELOID.values()]
    edges = np.zeros((len(genes), len(genes)), bool)
    for target, sources in enumerate(regulators):
        edges[sources, target] = True

    def production(x: Floats) -> Floats:
        powers = np.maximum(x, 0.0) ** hill
        degrees = powers / (powers + threshold**hill)
        return np.stack(
            [
                rule(*(degrees[..., i] for i in sources))
                for rule, sources in zip(rules, regulators, strict=True)
            ],
            axis=-1,
        )

    start = np.asarray([gene in ("Gata2", "Cebpa", "Pu1") for gene in genes], np.float64)
    return Circuit(genes, edges, production, start)


def random_circuit(
    generator: np.random.Generator, *, dim: int = 10, in_degree: int = 2, gain: float = 10.0
) -> Circuit:
    """A sparse circuit drawn at random: every gene has as many regulators, never itself.

    Activators and repressors, s_ij = ±1, add up: f_j = 1 / (1 + exp(-gain Σ_i s_ij (x_i - ½))).

    Args:
        generator: Of the edges, their signs and the start, which is uniform on [0, 1].
        dim: Number of genes.
        in_degree: Regulators of each gene, fewer than there are genes.
        gain: Steepness.

    Returns:
        The circuit.

    Raises:
        ValueError: If there are too few genes.
    """
    if not 1 <= in_degree < dim:
        raise ValueError(f"in_degree = {in_degree}: must be from 1 to dim - 1 = {dim - 1}")
    signs = np.zeros((dim, dim))
    for target in range(dim):
        others = np.delete(np.arange(dim), target)
        sources = generator.choice(others, in_degree, replace=False)
        signs[sources, target] = generator.choice([-1.0, 1.0], in_degree)

    def production(x: Floats) -> Floats:
        return 1.0 / (1.0 + np.exp(-gain * (x - 0.5) @ signs))

    genes = tuple(f"g{i + 1}" for i in range(dim))
    return Circuit(genes, signs != 0, production, generator.uniform(size=dim))


def simulate(
    generator: np.random.Generator,
    circuit: Circuit,
    times: tuple[float, ...],
    num_cells: int,
    *,
    noise: float,
    spread: float,
    step: float = 0.02,
) -> Floats:
    """Cells at some times, each of which is seen once: no cell is in two snapshots.

    By the method of Euler and Maruyama.

    Args:
        generator: Of the cells' starts and of the noise.
        circuit: The circuit.
        times: When cells are seen, ascending from 0 or later, in lifetimes.
        num_cells: Cells in each snapshot.
        noise: σ, per square root of a lifetime.
        spread: Standard deviation around the circuit's start, at time 0.
        step: Longest step, in lifetimes.

    Returns:
        Shape `(num_times, num_cells, dim)`.
    """
    shape = (len(times), num_cells, circuit.dim)
    x = circuit.start + spread * generator.normal(size=shape)
    now, seen = 0.0, []
    for time in times:
        count = math.ceil((time - now) / step)
        length = (time - now) / max(count, 1)
        for _ in range(count):
            shocks = generator.normal(size=x.shape)
            x = x + length * circuit.drift(x) + noise * math.sqrt(length) * shocks
        seen.append(x[0])
        now, x = time, x[1:]
    return np.stack(seen)
