"""A short film of the transport, as a GIF."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb, to_rgba
from PIL import Image
from scipy.spatial import KDTree

from d2ejax.plotting import style, transport
from d2ejax.plotting.style import Floats

Pixels = npt.NDArray[np.uint8]

FRAMES = 56
FRAME_MS = 50
HOLD_MS = (500, 900)
TRAIL = 5


def animation(
    times: npt.ArrayLike,
    paths: npt.ArrayLike,
    *,
    path: str | Path,
    num_particles: int = 350,
) -> Path:
    """Writes a four-second GIF of particles moving from the source to the target.

    Frames are uniform in time, whatever the grid: positions between grid times are
    interpolated linearly. In one dimension, time is the horizontal axis.

    Args:
        times: the time grid, shape (K+1,).
        paths: sampled paths, shape (n, K+1, dim).
        path: the file to write; its folder is made if missing.
        num_particles: how many particles move.

    Returns:
        The path written.

    Raises:
        ValueError: if a shape does not fit or a value is not finite.
    """
    times = style.check_times(times)
    paths = style.check_paths("paths", paths, times, None)
    everything = transport.plane(times, paths)
    clock = np.linspace(times[0], times[-1], FRAMES)
    tracks = resample(times, style.spread(everything, num_particles), clock)
    figure = style.new_figure(4.6, 4.85)
    axes = figure.subplots()
    _backdrop(axes, times, paths, everything)
    frames = _quantize(_render(axes, clock, tracks))
    durations = [HOLD_MS[0]] + [FRAME_MS] * (FRAMES - 2) + [HOLD_MS[1]]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    next(frames).save(
        path, format="GIF", save_all=True, append_images=frames, duration=durations, loop=0
    )
    return path


def resample(times: Floats, curves: Floats, clock: Floats) -> Floats:
    """Interpolates curves (n, len(times), 2) linearly at the times of `clock`."""
    right = np.clip(np.searchsorted(times, clock, side="right"), 1, len(times) - 1)
    part = (clock - times[right - 1]) / (times[right] - times[right - 1])
    return curves[:, right - 1] + part[:, None] * (curves[:, right] - curves[:, right - 1])


def _palette() -> Pixels:
    """Returns the 255 colours of all frames: white, greys, and tints of the time colours."""
    white = np.ones(3)
    hues = style.TIME_MAP(np.linspace(0, 1, 30))[:, None, :3]
    strengths = np.array([1.0, 0.8, 0.6, 0.45, 0.3, 0.2, 0.12])[:, None]
    tints = (white + strengths * (hues - white)).reshape(-1, 3)
    inks = np.array([to_rgb(c) for c in (style.INK, style.MUTED, style.FAINT)])
    parts = np.linspace(0, 1, 15)[:, None, None]
    greys = (white + parts * (inks - white)).reshape(-1, 3)
    return np.round(255 * np.concatenate([greys, tints])).astype(np.uint8)


def _quantize(images: Iterable[Pixels]) -> Iterator[Image.Image]:
    """Maps frames to the common palette, without dithering: little changes between them.

    Pillow's own mapping is off by a few levels, which makes a white ground grey.
    """
    palette = _palette()
    level = np.linspace(0, 255, 32)
    cube = np.stack(np.meshgrid(level, level, level, indexing="ij"), axis=-1).reshape(-1, 3)
    _, nearest = KDTree(palette).query(cube)
    table = nearest.astype(np.uint8)
    for image in images:
        red, green, blue = (image >> 3).astype(np.int32).transpose(2, 0, 1)
        frame = Image.fromarray(table[(red << 10) + (green << 5) + blue])
        frame.putpalette(palette.tobytes())
        yield frame


def _backdrop(axes: Axes, times: Floats, paths: Floats, everything: Floats) -> None:
    """Draws all that stands still: axes, and the source and target, faint."""
    for index, color in ((0, style.SOURCE), (-1, style.TARGET)):
        transport.faint_points(axes, style.spread(everything[:, index], 800), color)
    if paths.shape[-1] == 1:
        margin = 0.02 * (times[-1] - times[0])
        axes.set(xlim=(times[0] - margin, times[-1] + margin), xlabel="time t", ylabel="x")
        axes.set_ylim(style.interval(paths.ravel()))
        style.clean_axes(axes)
    else:
        style.space_axes(axes, style.window(paths), paths.shape[-1])


def _render(axes: Axes, clock: Floats, tracks: Floats) -> Iterator[Pixels]:
    """Renders each frame over one stored background, which is what makes it quick."""
    figure = axes.figure
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    trails = LineCollection([], linewidth=1.3, zorder=3, animated=True)
    axes.add_collection(trails, autolim=False)
    dots = axes.scatter(
        tracks[:, 0, 0],
        tracks[:, 0, 1],
        s=15,
        lw=0.5,
        edgecolor="white",
        zorder=4,
        animated=True,
    )
    axes.set_title(" ", size=16)
    label = axes.text(
        0.5, 1.02, "", transform=axes.transAxes, ha="center", size=16, color=style.INK
    )
    label.set_animated(True)
    canvas.draw()
    background = canvas.copy_from_bbox(figure.bbox)  # type: ignore[attr-defined]
    decimals = max(2 - int(np.floor(np.log10(clock[-1] - clock[0]))), 0)
    for frame, t in enumerate(clock):
        canvas.restore_region(background)  # type: ignore[attr-defined]
        color = style.time_color(clock, t)
        first = max(frame - TRAIL, 0)
        recent = tracks[:, first : frame + 1]
        segments = np.stack([recent[:, :-1], recent[:, 1:]], axis=2).reshape(-1, 2, 2)
        fade = [to_rgba(color, 0.5 * (i + 1) / TRAIL) for i in range(frame - first)]
        trails.set(segments=list(segments), color=fade * len(tracks))
        dots.set(offsets=tracks[:, frame], facecolor=color)
        label.set_text(f"particles at t = {t:.{decimals}f}")
        for artist in (trails, dots, label):
            axes.draw_artist(artist)
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()
