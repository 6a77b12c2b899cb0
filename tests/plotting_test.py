"""Figures: what they show, that nothing is clipped, and what they refuse."""

import subprocess
import sys
from itertools import combinations, pairwise

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver
from matplotlib.text import Text
from PIL import Image
from scipy import stats

from d2ejax import plotting
from d2ejax.plotting import motion, style

NUM_STEPS = 8
# Uneven on purpose: steps shrink towards the end.
TIMES = 0.2 * (1 - (1 - np.arange(NUM_STEPS + 1) / NUM_STEPS) ** 2)
NUMBERS = {"bridge gap [nats]": (0.18234, 0.079), "modes found": (8, 8), "ESS": (None, None)}
RECORDS = [
    {"gradient_steps": 10, "phase": "backward", "loss": 3.0},
    {"gradient_steps": 20, "phase": "forward", "loss": 5.0},
    {"gradient_steps": 30, "phase": "forward", "loss": 4.0},
    {"gradient_steps": 30, "path_kl": 3.0, "bridge_gap": 1.5},
    {"gradient_steps": 40, "phase": "backward", "loss": 2.0},
    {"gradient_steps": 50, "phase": "forward", "loss": float("nan")},
    {"gradient_steps": 60, "path_kl": 2.5, "bridge_gap": 0.1, "w2_squared": None},
    {"message": "no step at all"},
]


def make_paths(dim, n=300, seed=0):
    """Brownian bridges from a Gaussian to two far modes."""
    rng = np.random.default_rng(seed)
    x0 = 0.5 * rng.normal(size=(n, dim))
    x1 = 0.1 * rng.normal(size=(n, dim)) + rng.choice([-1.0, 1.0], (n, 1))
    s = (TIMES / TIMES[-1])[:, None]
    noise = np.sqrt(s * (1 - s)) * rng.normal(size=(n, NUM_STEPS + 1, dim))
    return x0[:, None] * (1 - s) + x1[:, None] * s + 0.2 * noise


def drift_case(dim):
    axis = np.linspace(-1, 1, 9)
    points = np.zeros((81, dim))
    points[:, :2] = np.stack(np.meshgrid(axis, axis), -1).reshape(81, 2)[:, :dim]
    times = [0.0, 0.1, 0.19]
    exact = np.stack([-points / (0.2 - t) + 0.3 for t in times])
    weights = np.exp(-np.sum(points**2, -1)) * np.ones((3, 1))
    return times, points, 1.2 * exact, exact, weights


def draw(name, dim, with_exact):
    paths = make_paths(dim)
    exact = make_paths(dim, seed=1) if with_exact else None
    if name == "marginals":
        return plotting.marginals(TIMES, paths, exact)
    if name == "sample_paths":
        return plotting.sample_paths(TIMES, paths, exact)
    if name == "coupling":
        ends = (exact[:, 0], exact[:, -1]) if with_exact else (None, None)
        return plotting.coupling(paths[:, 0], paths[:, -1], *ends)
    if name == "drift_field":
        times, points, learned, field, weights = drift_case(dim)
        return plotting.drift_field(
            times, points, learned, field if with_exact else None, weights=weights
        )
    names = {"source": "a source with a rather long name", "target": "a long target (energy)"}
    return plotting.overview(TIMES, paths, exact, numbers=NUMBERS, title="A title", **names)


def texts(figure):
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]


def assert_fit_to_show(figure, path):
    """The file has ink and white in it, nothing leaves the page, headings do not collide."""
    pixels = np.asarray(Image.open(plotting.save(figure, path)).convert("L"))
    assert min(pixels.shape) > 300
    assert 0.005 < np.mean(pixels < 240) < 0.6
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -0.01, box
    boxes = [text.get_window_extent() for text in figure.texts]
    for first, second in combinations(boxes, 2):
        assert not first.overlaps(second)


@pytest.mark.parametrize("with_exact", [True, False])
@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize(
    "name", ["marginals", "sample_paths", "coupling", "drift_field", "overview"]
)
def test_every_figure_fits_its_page(name, dim, with_exact, tmp_path):
    figure = draw(name, dim, with_exact)
    assert isinstance(figure, Figure)
    assert_fit_to_show(figure, tmp_path / "new" / f"{name}.png")
    shown = " ".join(text.get_text() for text in texts(figure))
    assert ("exact" in shown) == with_exact
    assert ("of 5" in shown) == (dim == 5)


def test_marginals_name_the_nearest_grid_times():
    figure = plotting.marginals(TIMES, make_paths(2), snapshots=3)
    titles = [axes.get_title() for axes in figure.axes]
    # The grid is .2 (1 - (1 - k/8)²): nearest to .1 is k = 2, at .0875.
    assert titles == ["t = 0", "t = 0.088", "t = 0.2"]


def test_a_column_of_marginals_shares_its_scale():
    narrow, wide = 0.05 * make_paths(2), make_paths(2)
    figure = plotting.marginals(TIMES, narrow, wide, snapshots=2)
    top, bottom = (figure.axes[i].images[0].get_array().max() for i in (0, 2))
    assert top == pytest.approx(1.0)
    assert bottom < 0.3


def test_paths_are_coloured_by_their_time():
    figure = plotting.sample_paths(TIMES, make_paths(2, n=3))
    (lines,) = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    by_step = np.asarray(lines.get_array()).reshape(NUM_STEPS, 3)
    assert np.all(by_step > TIMES[:-1, None]) and np.all(by_step < TIMES[1:, None])
    assert lines.get_clim() == (0.0, 0.2)


def test_coupling_joins_the_right_pairs():
    x0 = np.array([[0.0, 0.0], [1.0, 0.0]])
    x1 = np.array([[0.0, 3.0], [1.0, 4.0]])
    figure = plotting.coupling(x0, x1)
    (lines,) = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    ends = {tuple(point) for segment in lines.get_segments() for point in np.round(segment, 9)}
    heights = [{y for x, y in ends if x == side} for side in (0.0, 1.0)]
    assert {x for x, _ in ends} == {0.0, 1.0}
    assert [max(h) for h in heights] == [3.0, 4.0]


def test_drift_error_is_weighted_and_thin_regions_are_left_out():
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    exact = np.ones((1, 3, 2))
    learned = exact * np.array([1.5, 1.5, 99.0])[:, None]
    figure = plotting.drift_field([0.1], points, learned, exact, weights=[[1.0, 1.0, 0.0]])
    assert "error 50%" in figure.axes[0].get_title()
    fields = [c for c in figure.axes[0].collections if isinstance(c, Quiver)]
    assert [field.N for field in fields] == [2, 2, 1]


def test_training_curves_draw_losses_metrics_and_ideals(tmp_path):
    figure = plotting.training_curves(RECORDS, {"path_kl": 2.4, "bridge_gap": None})
    assert_fit_to_show(figure, tmp_path / "curves.png")
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == [
        "Loss, backward half-step",
        "Loss, forward half-step",
        "Path KL [nats]",
        "Bridge gap [nats]",
    ]
    # The backward loss breaks where the forward half-step came between.
    raw = panels["Loss, backward half-step"].lines[0].get_ydata()
    np.testing.assert_array_equal(raw, [3.0, np.nan, 2.0])
    np.testing.assert_array_equal(
        panels["Loss, forward half-step"].lines[0].get_ydata(), [5.0, 4.0]
    )
    kl, gap = panels["Path KL [nats]"], panels["Bridge gap [nats]"]
    assert [list(line.get_ydata()) for line in kl.lines] == [[3.0, 2.5], [2.4, 2.4]]
    assert [list(line.get_ydata()) for line in gap.lines] == [[1.5, 0.1]]
    assert (kl.get_yscale(), gap.get_yscale()) == ("linear", "log")


def test_phases_by_any_name_have_their_panel():
    records = [
        {"gradient_steps": step, "loss": 1.0 / step, "phase": phase}
        for step, phase in ((1, "sampling"), (2, "sampling"), (3, "backward"))
    ]
    figure = plotting.training_curves(records)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["Loss, backward half-step", "Loss, sampling"]


def test_training_curves_need_something_to_draw():
    with pytest.raises(ValueError, match="records"):
        plotting.training_curves([{"gradient_steps": 1, "loss": None, "phase": "forward"}])


def test_one_record_is_enough(tmp_path):
    figure = plotting.training_curves(RECORDS[:1], None)
    assert_fit_to_show(figure, tmp_path / "curves.png")


def test_overview_writes_the_numbers_and_leaves_its_input_alone():
    paths = make_paths(2)
    before = paths.copy()
    figure = plotting.overview(TIMES, paths, paths.copy(), numbers=NUMBERS, title="A title")
    np.testing.assert_array_equal(paths, before)
    shown = [text.get_text() for text in texts(figure)]
    for wanted in ("A title", "0.182", "ideal 0.0790", "8", "ideal 8", "–", "source", "target"):
        assert wanted in shown
    width, height = figure.get_size_inches()
    assert width / height == pytest.approx(16 / 9)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_animation_is_a_short_small_gif_that_moves(dim, tmp_path):
    path = plotting.animation(TIMES, make_paths(dim), path=tmp_path / "new" / "film.gif")
    assert path.stat().st_size < 2.5e6
    with Image.open(path) as film:
        assert min(film.size) >= 480 and max(film.size) <= 600
        frames, milliseconds = [], 0
        for index in range(film.n_frames):
            film.seek(index)
            milliseconds += film.info["duration"]
            frames.append(np.asarray(film.convert("RGB"), np.int32))
    assert 3000 <= milliseconds <= 5000
    assert np.all(frames[0][:3, :3] == 255)
    moved = [np.mean(np.any(a != b, axis=-1)) for a, b in pairwise(frames)]
    assert min(moved) > 0.001


def test_films_run_uniformly_in_time_on_an_uneven_grid():
    curves = np.stack([TIMES, -3 * TIMES], axis=-1)[None]
    clock = np.linspace(0, 0.2, 11)
    tracks = motion.resample(TIMES, curves, clock)
    np.testing.assert_allclose(tracks[0], np.stack([clock, -3 * clock], -1), atol=1e-12)


def test_density_is_that_of_the_samples():
    values = np.random.default_rng(0).normal(size=20_000)
    x, (heights,) = style.densities_1d([values], (-5.0, 5.0))
    np.testing.assert_allclose(heights, stats.norm.pdf(x), atol=0.03)
    assert np.sum(heights) * (x[1] - x[0]) == pytest.approx(1.0, abs=1e-3)


def test_equal_samples_give_few_but_finite_pixels(tmp_path):
    # Also a collapsed model must be shown, not crash the report.
    for dim in (1, 2):
        paths = np.zeros((50, NUM_STEPS + 1, dim))
        plotting.save(plotting.marginals(TIMES, paths), tmp_path / "marginals.png")
        plotting.save(plotting.sample_paths(TIMES, paths), tmp_path / "paths.png")


def case(function, *args, **kwargs):
    return lambda: getattr(plotting, function)(*args, **kwargs)


GOOD = make_paths(2, n=5)
GRID = np.zeros((4, 2))
REFUSED = {
    "times: order": ("times", case("marginals", TIMES[::-1], GOOD)),
    "times: shape": ("times", case("marginals", TIMES[None], GOOD)),
    "learned": ("learned", case("marginals", TIMES, GOOD[:, :-1])),
    "learned: finite": ("learned", case("marginals", TIMES, GOOD + np.inf)),
    "exact": ("exact", case("marginals", TIMES, GOOD, GOOD[..., :1])),
    "snapshots": ("snapshots", case("marginals", TIMES, GOOD, snapshots=1)),
    "paths": ("paths", case("sample_paths", TIMES, GOOD[0])),
    "exact_paths": ("exact_paths", case("sample_paths", TIMES, GOOD, GOOD[:, 1:])),
    "x0": ("x0", case("coupling", GOOD, GOOD[:, 0])),
    "x1": ("x1", case("coupling", GOOD[:, 0], GOOD[1:, 0])),
    "exact_x0: one only": ("exact_x0", case("coupling", GRID, GRID, None, GRID)),
    "exact_x1": ("exact_x1", case("coupling", GRID, GRID, GRID, GRID[:3])),
    "points": ("points", case("drift_field", [0.0], GRID[0], np.zeros((1, 4, 2)))),
    "learned_drift": ("learned_drift", case("drift_field", [0.0], GRID, np.zeros((2, 4, 2)))),
    "exact_drift": ("exact_drift", case("drift_field", [0.0], GRID, [GRID], GRID)),
    "weights": ("weights", case("drift_field", [0.0], GRID, [GRID], weights=np.ones(4))),
    "weights: empty": (
        "weights",
        case("drift_field", [0.0], GRID, [GRID], weights=np.zeros((1, 4))),
    ),
    "overview: exact": (
        "exact",
        case("overview", TIMES, GOOD, GOOD[0], numbers=NUMBERS, title=""),
    ),
    "numbers": ("numbers", case("overview", TIMES, GOOD, numbers={}, title="")),
    "panels": ("panels", case("comparison", [], title="")),
    "panels: shapes": (
        "panels",
        case("comparison", [plotting.Panel("", {"a": ([1], [1, 2])}, "", "")], title=""),
    ),
    "animation: paths": ("paths", case("animation", TIMES, GOOD[..., 0], path="never.gif")),
}


@pytest.mark.parametrize(("argument", "call"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_input_is_refused_by_name(argument, call):
    with pytest.raises(ValueError, match=rf"^{argument} "):
        call()


def test_plotting_never_imports_pyplot():
    code = "import sys, d2ejax.plotting;assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def panels():
    lines = {"one": ([2, 16, 128], [0.1, 1.0, 30.0]), "two": ([2, 128], [0.2, 3.0])}
    broken = {"one": ([2, 16, 128], [0.5, np.nan, -0.1]), "three": ([2], [0.4])}
    return [
        plotting.Panel("ε = 1", lines, "dimension", "gap", limit=([2, 128], [0.05, 0.06])),
        plotting.Panel("ε = 10", broken, "dimension", "gap"),
    ]


def test_a_comparison_draws_each_name_alike_and_only_what_a_logarithm_can_show(tmp_path):
    figure = plotting.comparison(panels(), title="Methods", limit_name="K-step limit")
    assert_fit_to_show(figure, tmp_path / "comparison.png")
    first, second = figure.axes
    assert [list(line.get_xdata()) for line in first.lines] == [
        [2, 16, 128],
        [2, 128],
        [2, 128],
    ]
    assert [list(line.get_ydata()) for line in second.lines] == [[0.5], [0.4]]
    colors = [axes.lines[0].get_color() for axes in (first, second)]
    assert colors[0] == colors[1] != first.lines[1].get_color()
    assert list(first.get_xticks()) == [2, 16, 128]
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["one", "two", "three", "K-step limit"]


def test_many_names_fit_below_a_single_panel(tmp_path):
    lines = {f"ipf D2E log-variance {i}": ([2, 16], [i + 1, i + 2]) for i in range(7)}
    panel = plotting.Panel("ε = 1", lines, "dimension", "gap", limit=([2], [0.1]))
    figure = plotting.comparison([panel], title="Methods")
    assert_fit_to_show(figure, tmp_path / "comparison.png")
    looks = {(line.get_color(), str(line.get_linestyle())) for line in figure.axes[0].lines}
    assert len(looks) == 8


def test_a_comparison_fills_rows_and_hides_what_is_left(tmp_path):
    figure = plotting.comparison(panels() * 2, title="Methods", columns=3, share_y=False)
    assert_fit_to_show(figure, tmp_path / "comparison.png")
    assert [axes.get_visible() for axes in figure.axes] == [True] * 4 + [False] * 2


@pytest.mark.parametrize("dim", [2, 5])
def test_snapshots_stand_above_what_is_learned_and_the_one_left_out_is_marked(dim, tmp_path):
    paths, knots = make_paths(dim), (0, 3, NUM_STEPS)
    figure = plotting.snapshots(
        TIMES,
        paths,
        [make_paths(dim, n=200, seed=2)[:, knot] for knot in knots],
        knots,
        labels=("first", "second", "last"),
        left_out=1,
        notes=("", "a note", "another"),
    )
    assert_fit_to_show(figure, tmp_path / "snapshots.png")
    above, below = figure.axes[:3], figure.axes[3:]
    assert [axes.get_title() for axes in above] == ["first", "second, left out", "last"]
    framed = [axes.spines["top"].get_visible() for axes in figure.axes]
    assert framed == [False, True, False] * 2
    assert [axes.get_xlabel().partition("\n")[2] for axes in below] == ["", "a note", "another"]
    # Lines lead to a snapshot from where the paths were at the one before.
    trails = [[c for c in axes.collections if isinstance(c, LineCollection)] for axes in below]
    assert [len(lines) for lines in trails] == [0, 1, 1]
    segments = np.asarray(trails[2][0].get_segments())
    ends = segments.reshape(NUM_STEPS - 3, -1, 2, 2)
    drawn = style.spread(paths, ends.shape[1])
    np.testing.assert_allclose(ends[0, :, 0], drawn[:, 3, :2])
    np.testing.assert_allclose(ends[-1, :, 1], drawn[:, -1, :2])


def test_snapshots_need_a_plane():
    with pytest.raises(ValueError, match="paths have 1 coordinate: must have at least 2"):
        plotting.snapshots(TIMES, make_paths(1), [np.zeros((3, 1))], (0,), labels=("first",))


def test_a_graph_has_its_true_edges_framed_and_no_diagonal(tmp_path):
    names, edges = [f"Gene{i}" for i in range(11)], np.zeros((11, 11), bool)
    edges[[0, 3, 4], [1, 2, 4]] = True
    strengths = np.random.default_rng(0).uniform(size=(11, 11)) + 9.0 * np.eye(11)
    figure = plotting.graph(names, edges, strengths, note="AUROC 0.50")
    assert_fit_to_show(figure, tmp_path / "graph.png")
    true, learned = (axes.images[0] for axes in figure.axes)
    assert np.argwhere(true.get_array().filled(0.0)).tolist() == [[0, 1], [3, 2]]
    # The scale is that of what is shown.
    assert learned.get_array().mask.trace() == 11 and learned.get_clim()[1] < 1.0
    frames = {(patch.get_y() + 0.5, patch.get_x() + 0.5) for patch in figure.axes[1].patches}
    assert frames == {(0.0, 1.0), (3.0, 2.0)}
    with pytest.raises(
        ValueError, match=r"strengths must have shape \(dim, dim\) = \(11, 11\)"
    ):
        plotting.graph(names, edges, strengths[1:])
