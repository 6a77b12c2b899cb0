"""Imports flow one way, and modules stay small: the rooms of the library as a checked list."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPINE = ("typing", "time_grids", "gaussians", "references", "kernels", "rollouts")

# Each room of d2ejax, from the bottom up, with the only rooms that it may import.
ROOMS = {
    "typing": (),
    "non_finite": ("typing",),
    "time_grids": ("typing",),
    "gaussians": ("typing",),
    "references": SPINE[:3],
    "kernels": SPINE[:4],
    "rollouts": SPINE[:5],
    "light": SPINE[:5],
    "flows": SPINE[:5],
    "couplings": SPINE[:4],
    "sequential_monte_carlo": (*SPINE[:5], "non_finite"),
    # Leaves: handed in as functions, so that anybody's own can take their place.
    "networks": ("typing",),
    "graph_networks": ("typing", "networks"),
    "circuits": (),
    "endpoints": ("typing",),
    # Of endpoints, the coordinates of particles without their centre of mass.
    "equivariant_networks": ("typing", "networks", "endpoints.particle_systems"),
    # Of endpoints, how options are refused.
    "images": ("typing", "endpoints.options"),
    # Endpoints that trained networks of images stand behind.
    "latents": ("typing", "endpoints", "images"),
    "losses": ("typing", "non_finite"),
    "exploration": ("typing", "non_finite"),
    "plotting": (),
    "exact": SPINE[:4],
    "metrics": (*SPINE, "exact", "non_finite"),
    # Processes observed at more times than the two ends.
    "snapshots": ("typing", "circuits", "endpoints"),
    # Ends that come with their exact bridge.
    "pairs": (*SPINE[:4], "endpoints", "exact", "metrics"),
    # Of endpoints, the type alone: which ones there are is the caller's affair.
    "algorithms": (
        *SPINE,
        "non_finite",
        "light",
        "losses",
        "exploration",
        "endpoints.base",
    ),
    "parallel": ("typing", "algorithms.base"),
    # Of endpoints, the type alone.
    "saved_bridges": (*SPINE, "endpoints.base", "non_finite"),
}
MAX_LINES = 400
# Packages that only some rooms may know.
RUNNER_ONLY = {"absl", "ml_collections", "orbax", "tqdm"}
DEVICE_NAMES = {
    "pmap",
    "shard_map",
    "make_mesh",
    "devices",
    "device_count",
    "local_devices",
    "local_device_count",
}


def read_sources(root):
    """Dotted module names to source text, of everything that is not a test."""
    sources = {}
    for package in ("d2ejax", "experiments", "benchmarks"):
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            sources[name] = path.read_text()
    return sources


def is_package(module, sources):
    return any(name.startswith(module + ".") for name in sources)


def imports(module, sources):
    """Every module that this one imports, wherever in the file and however it is written."""
    found = set()
    for node in ast.walk(ast.parse(sources[module])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = node.level - is_package(module, sources)
                parents = module.split(".")[: len(module.split(".")) - up]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in sources else base)
    return found


def room_of(module):
    """The room below d2ejax; empty for the package itself, None elsewhere."""
    top, _, rest = module.partition(".")
    return rest.split(".")[0] if top == "d2ejax" else None


def may_import(module, target):
    """Whether the arrow from one module of ours to another points down."""
    top, target_top = module.partition(".")[0], target.partition(".")[0]
    if top in ("experiments", "benchmarks"):
        return target_top != "benchmarks" or top == "benchmarks"
    if target_top != "d2ejax":
        return False
    room, target_room = room_of(module), room_of(target)
    if not room or room == target_room:  # The public face imports all; a room, itself.
        return True
    inner = target.removeprefix("d2ejax.")
    return any(inner == name or inner.startswith(name + ".") for name in ROOMS.get(room, ()))


def upward_arrows(sources):
    ours = {"d2ejax", "experiments", "benchmarks"}
    return sorted(
        f"{module} -> {target}"
        for module in sources
        for target in imports(module, sources)
        if target.partition(".")[0] in ours and not may_import(module, target)
    )


def import_cycle(sources):
    """A cycle among our modules as a list of names, or None."""
    graph = {
        module: sorted(target for target in imports(module, sources) if target in sources)
        for module in sources
    }
    done = set()

    def visit(module, trail):
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in done:
            return None
        for target in graph[module]:
            if cycle := visit(target, [*trail, module]):
                return cycle
        done.add(module)
        return None

    return next((cycle for module in graph if (cycle := visit(module, []))), None)


def long_modules(sources):
    return [name for name, text in sources.items() if len(text.splitlines()) > MAX_LINES]


def foreign_imports(sources, packages, allowed):
    """Imports of some third-party packages by modules where they are not allowed."""
    return sorted(
        f"{module} -> {target}"
        for module in sources
        for target in imports(module, sources)
        if target.partition(".")[0] in packages and not allowed(module)
    )


def device_uses(sources):
    """Uses of `jax.pmap`, `jax.shard_map`, `jax.devices` ... outside parallel.py."""
    uses = set()
    for module, text in sources.items():
        if module == "d2ejax.parallel" or not module.startswith("d2ejax"):
            continue
        for node in ast.walk(ast.parse(text)):
            attribute = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if attribute and node.value.id == "jax" and node.attr in DEVICE_NAMES:
                uses.add(f"{module}: jax.{node.attr}")
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jax"):
                names = {alias.name for alias in node.names} & (DEVICE_NAMES - {"devices"})
                uses |= {f"{module}: {name}" for name in names}
    return sorted(uses)


def with_module(sources, module, text):
    """The same tree of modules, all of them empty but one."""
    return {**dict.fromkeys(sources, ""), module: text}


@pytest.fixture(scope="module")
def sources():
    return read_sources(ROOT)


def test_every_room_is_listed(sources):
    rooms = {room_of(module) for module in sources} - {None, ""}
    assert rooms == set(ROOMS)


def test_rooms_are_listed_from_the_bottom_up():
    order = list(ROOMS)
    for room, below in ROOMS.items():
        assert all(order.index(name.split(".")[0]) < order.index(room) for name in below)


def test_imports_point_down(sources):
    assert upward_arrows(sources) == []


def test_no_import_cycle(sources):
    assert import_cycle(sources) is None


def test_modules_are_short(sources):
    assert long_modules(sources) == []


def test_the_library_does_not_know_the_runners_packages(sources):
    assert foreign_imports(sources, RUNNER_ONLY, lambda m: not m.startswith("d2ejax")) == []


def test_only_plotting_draws(sources):
    def allowed(module):
        return not module.startswith("d2ejax") or room_of(module) == "plotting"

    def may_read_pictures(module):
        return allowed(module) or room_of(module) == "images"

    assert foreign_imports(sources, {"matplotlib"}, allowed) == []
    assert foreign_imports(sources, {"PIL"}, may_read_pictures) == []


def test_only_parallel_knows_devices(sources):
    assert device_uses(sources) == []


@pytest.mark.parametrize(
    ("module", "text", "arrow"),
    [
        ("d2ejax.losses.bad", "from d2ejax import rollouts", "d2ejax.rollouts"),
        ("d2ejax.losses.bad", "import d2ejax.kernels as k", "d2ejax.kernels"),
        ("d2ejax.losses.bad", "from ..kernels import Process", "d2ejax.kernels"),
        ("d2ejax.losses", "from ..kernels import Process", "d2ejax.kernels"),
        ("d2ejax.networks", "from .references import brownian", "d2ejax.references"),
        ("d2ejax.endpoints.bad", "def f():\n    import d2ejax.exact", "d2ejax.exact"),
        ("d2ejax.time_grids", "from d2ejax.references import Reference", "d2ejax.references"),
        ("d2ejax.rollouts", "import experiments.build", "experiments.build"),
        ("d2ejax.metrics.bad", "from d2ejax.algorithms import ipf", "d2ejax.algorithms.ipf"),
        ("d2ejax.parallel", "from d2ejax.algorithms import ipf", "d2ejax.algorithms.ipf"),
        ("d2ejax.algorithms.bad", "from d2ejax.endpoints import ring", "d2ejax.endpoints"),
        ("d2ejax.kernels", "from d2ejax import something_public", "d2ejax"),
        ("d2ejax.unlisted", "from d2ejax.typing import Array", "d2ejax.typing"),
        ("experiments.bad", "import benchmarks.throughput", "benchmarks.throughput"),
    ],
)
def test_checker_sees_an_upward_arrow(sources, module, text, arrow):
    assert upward_arrows(with_module(sources, module, text)) == [f"{module} -> {arrow}"]


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("d2ejax.algorithms.good", "from d2ejax import losses, rollouts"),
        ("d2ejax.losses.good", "from d2ejax.losses import likelihood"),
        ("d2ejax.parallel", "from d2ejax.algorithms.base import Algorithm"),
        ("d2ejax", "from d2ejax.rollouts import simulate"),
        ("experiments.good", "from d2ejax.metrics import bridge_gap"),
        ("benchmarks.good", "from experiments import build"),
    ],
)
def test_checker_lets_downward_arrows_pass(sources, module, text):
    assert upward_arrows(with_module(sources, module, text)) == []


def test_checker_sees_cycles_and_long_modules(sources):
    looped = {
        **sources,
        "d2ejax.losses.one": "from d2ejax.losses import two",
        "d2ejax.losses.two": "def f():\n    from .three import g",
        "d2ejax.losses.three": "import d2ejax.losses.one",
    }
    assert set(import_cycle(looped)) == {f"d2ejax.losses.{n}" for n in ("one", "two", "three")}
    assert long_modules({"full": "x\n" * MAX_LINES, "over": "x\n" * 401}) == ["over"]


def test_checker_sees_packages_and_devices_where_they_do_not_belong():
    bad = {
        "d2ejax.losses.bad": "import matplotlib.pyplot\nfrom absl import flags",
        "d2ejax.rollouts": "import jax\nf = jax.pmap(abs)",
        "d2ejax.kernels": "from jax import shard_map",
        "d2ejax.parallel": "import jax\nf = jax.pmap(abs)",
    }
    assert foreign_imports(bad, RUNNER_ONLY, lambda m: False) == ["d2ejax.losses.bad -> absl"]
    drawn = foreign_imports(bad, {"matplotlib"}, lambda m: room_of(m) == "plotting")
    assert drawn == ["d2ejax.losses.bad -> matplotlib.pyplot"]
    assert device_uses(bad) == ["d2ejax.kernels: shard_map", "d2ejax.rollouts: jax.pmap"]
