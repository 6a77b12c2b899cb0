"""Figures of images: what is shown is what was given."""

import numpy as np
import pytest

from d2ejax import plotting


def shades(n, size=4, channels=1):
    levels = np.linspace(-1.0, 1.0, n)
    return np.broadcast_to(levels[:, None, None, None], (n, size, size, channels))


def test_translations_are_in_blocks_of_three_rows():
    figure = plotting.translations(shades(20), -shades(20), shades(20), title="t")
    shown = [axes.images[0].get_array() for axes in figure.axes]
    assert len(shown) == 6
    np.testing.assert_allclose(shown[0][0, ::4, 0], (shades(20)[:16, 0, 0, 0] + 1) / 2)
    np.testing.assert_allclose(shown[1][0, ::4, 0], (1 - shades(20)[:16, 0, 0, 0]) / 2)
    # The second block has four, and is blank where there are no more.
    np.testing.assert_allclose(shown[3][0, 16:, 0], 1.0)


def test_a_path_is_a_row_and_time_a_column():
    paths = np.stack([shades(5, channels=3), -shades(5, channels=3)])
    figure = plotting.morphs(np.linspace(0.0, 0.5, 5), paths, title="t")
    assert len(figure.axes) == 2
    labels = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert labels == ["0%", "25%", "50%", "75%", "100%"]
    np.testing.assert_allclose(
        figure.axes[1].images[0].get_array()[0, ::4, 2], [1, 0.75, 0.5, 0.25, 0]
    )


@pytest.mark.parametrize(
    ("draw", "text"),
    [
        (lambda: plotting.translations(shades(3), shades(2), shades(3), title=""), "the same"),
        (
            lambda: plotting.translations(
                shades(3, channels=2), shades(3), shades(3), title=""
            ),
            r"source: has shape \(3, 4, 4, 2\)",
        ),
        (
            lambda: plotting.translations(shades(3), np.nan * shades(3), shades(3), title=""),
            "moved to: holds values",
        ),
        (lambda: plotting.morphs(np.arange(4), shades(5)[None], title=""), r"\(num_paths, 4,"),
    ],
)
def test_what_does_not_fit_is_refused(draw, text):
    with pytest.raises(ValueError, match=text):
        draw()
