"""The figure of methods ranked by one number."""

import pytest

from d2ejax import plotting


def _panel(**values):
    return plotting.Ranking("a pair, 3000 steps", values, "bridge gap [nats]", limit=0.05)


def test_the_best_is_on_top_and_what_a_logarithm_cannot_show_is_left_out(tmp_path):
    figure = plotting.ranking(
        [_panel(one=0.2, two=0.1, three=float("nan"), four=-1.0), _panel(one=3.0)], title="All"
    )
    first = figure.axes[0]
    assert [label.get_text() for label in first.get_yticklabels()] == ["one", "two"]
    (dots, limit) = first.lines
    assert list(dots.get_xdata()) == [0.2, 0.1] and list(limit.get_xdata()) == [0.05, 0.05]
    assert [text.get_text() for text in first.texts] == ["0.2", "0.1"]
    assert first.get_xlim()[0] < 0.05 < 0.2 < first.get_xlim()[1]
    plotting.save(figure, tmp_path / "ranking.png")


@pytest.mark.parametrize(("panels", "what"), [([], "empty"), ([_panel(one=-1.0)], "none")])
def test_there_must_be_something_to_rank(panels, what):
    with pytest.raises(ValueError, match=what):
        plotting.ranking(panels, title="All")
