"""Snapshots: a process with closed forms before it forks, and a table that a package ships."""

import importlib.metadata

import jax
import numpy as np
import pytest

from d2ejax import snapshots
from tests.endpoints.agreement import assert_mean_in_errors


@pytest.fixture(scope="module")
def fork():
    return snapshots.branching(2.0, dim=3)


def draw(end, n=4000, seed=0):
    return np.asarray(end.sample(jax.random.key(seed), n), np.float64)


def test_times_are_stretched_to_the_horizon(fork):
    assert fork.times == (0.0, 0.5, 1.0, 1.5, 2.0)
    assert fork.labels == ("t = 0", "t = 0.5", "t = 1", "t = 1.5", "t = 2")
    assert [end.dim for end in fork.marginals] == [3] * 5 and fork.tracks is None
    assert all(end.log_density is None for end in fork.marginals)


def test_before_the_fork_it_is_drawn_to_one_moving_well(fork):
    start, later = draw(fork.marginals[0]), draw(fork.marginals[1])
    assert_mean_in_errors(start, [-2.0, 0.0, 0.0])
    assert_mean_in_errors((start - [-2.0, 0.0, 0.0]) ** 2, [0.05] * 3)
    # dm = 10 (c - m) dt with c = -2 + 4t, at t = 1/4; steps of 1/200 are off by .01.
    assert_mean_in_errors(later[:, 1:], [0.0, 0.0])
    mean = later[:, 0].mean()
    np.testing.assert_allclose(mean, -1.0 - 0.4 * (1.0 - np.exp(-2.5)), atol=0.025)
    # The stationary variance of those steps is 1/20 / (1 - 10/400).
    assert_mean_in_errors((later - [mean, 0.0, 0.0]) ** 2, [0.05 / 0.975] * 3, errors=5.0)


def test_it_forks_twice_and_what_is_beyond_the_plane_stays_as_it_is(fork):
    # Until the second fork both sides are alike.
    halfway = draw(fork.marginals[2])
    assert_mean_in_errors((halfway[:, 1:2] > 0) * 1.0, [0.5])
    assert_mean_in_errors(halfway[:, 1:2], [0.0])
    assert np.mean(np.abs(halfway[:, 1])) > 1.5 * (2.0 / np.pi * 0.05 / 0.975) ** 0.5
    x = draw(fork.marginals[-1])
    arms = np.digitize(x[:, 1], [-1.0, 0.65])
    assert np.all(np.bincount(arms) > 0.15 * len(x))
    for arm, centre in enumerate((-1.9, -0.1, 1.4)):
        # A little behind the wells, which go on.
        assert abs(np.median(x[arms == arm, 1]) - centre) < 0.3
    valley, gap = (np.mean(np.abs(x[:, 1] - at) < 0.2) for at in (1.3, 0.65))
    assert gap < 0.1 * valley
    assert_mean_in_errors(x[:, 2:], [0.0])
    assert_mean_in_errors(x[:, 2:] ** 2, [0.05 / 0.975], errors=5.0)


def test_samples_are_fresh(fork):
    end = fork.marginals[2]
    first, other = draw(end, 50), draw(end, 50, seed=1)
    np.testing.assert_array_equal(first, draw(end, 50))
    assert len({tuple(row) for row in np.concatenate([first, other]).round(5).tolist()}) == 100


@pytest.fixture(scope="module")
def countries():
    return snapshots.gapminder(3.0, years=[1957, 1972, 2007])


def test_countries_are_standardised_by_the_first_year_and_drawn_from_their_table(countries):
    tracks = countries.tracks
    assert tracks.shape == (142, 3, 2) and tracks.dtype == np.float32
    assert countries.labels == ("1957", "1972", "2007")
    np.testing.assert_allclose(countries.times, [0.0, 0.9, 3.0], rtol=1e-12)
    np.testing.assert_allclose(tracks[:, 0].mean(axis=0), 0.0, atol=1e-6)
    np.testing.assert_allclose(tracks[:, 0].std(axis=0), 1.0, atol=1e-6)
    # The world got healthier and wealthier.
    assert np.all(tracks[:, 2].mean(axis=0) > 0.5)
    for index, end in enumerate(countries.marginals):
        rows = {tuple(row) for row in tracks[:, index].tolist()}
        x = draw(end, 1000).astype(np.float32)
        assert {tuple(row) for row in x.tolist()} <= rows
        # Nearly every country is among a thousand draws.
        assert len({tuple(row) for row in x.tolist()}) > 0.95 * len(rows)


def test_the_table_is_what_it_says():
    years, values = snapshots._countries()
    assert years == list(range(1952, 2008, 5)) and values.shape == (142, 12, 2)
    # Afghanistan in 1952 comes first; Zimbabwe in 2007 last.
    np.testing.assert_allclose(10.0 ** values[0, 0, 0], 779.4453145)
    np.testing.assert_allclose(values[0, 0, 1], 28.801)
    np.testing.assert_allclose(10.0 ** values[-1, -1, 0], 469.7092981)
    np.testing.assert_allclose(values[-1, -1, 1], 43.487)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(
        ValueError, match=r"package plotly, which is not installed: pip install"
    ):
        snapshots.make_snapshots("gapminder", 1.0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("branchin", {}, "unknown snapshots 'branchin': did you mean 'branching'?"),
        ("branching", {"dims": 2}, "unknown option of snapshots 'branching' 'dims'"),
        ("branching", {"t_max": 2}, "unknown option of snapshots 'branching' 't_max'"),
        ("branching", {"dim": 1}, "dim = 1 is not allowed: must be an integer >= 2"),
        ("branching", {"num_snapshots": 2}, "num_snapshots = 2 is not allowed"),
        (
            "gapminder",
            {"years": (1957, 2007)},
            "years = (1957, 2007) is not allowed: must be at",
        ),
        ("gapminder", {"years": (1957, 1960, 2007)}, "at least three of [1952, 1957,"),
        ("gapminder", {"years": (2007, 1957, 1997)}, "in order"),
    ],
)
def test_bad_names_and_options_are_refused(name, options, message):
    with pytest.raises(ValueError) as caught:
        snapshots.make_snapshots(name, 1.0, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", sorted(snapshots.SNAPSHOTS))
def test_horizons_are_positive(name):
    with pytest.raises(ValueError, match=f"snapshots '{name}': t_max = 0.0 is not allowed"):
        snapshots.make_snapshots(name, 0.0)


def test_cells_of_a_circuit_are_drawn_from_those_that_were_measured():
    found = snapshots.make_snapshots("regulatory", 2.0, num_snapshots=3, num_cells=20, seed=4)
    assert found.times == (0.0, 1.0, 2.0) and found.labels == ("t = 0", "t = 1", "t = 2")
    circuit = found.circuit
    assert circuit.genes[0] == "Gata2" and circuit.edges.sum() == 30
    cells = [{tuple(row) for row in draw(end, 300).tolist()} for end in found.marginals]
    assert [len(rows) for rows in cells] == [20] * 3
    start = draw(found.marginals[0], 300)
    assert np.abs(start.mean(axis=0) - circuit.start).max() < 5.0 * 0.3 / 20**0.5


def test_a_random_circuit_is_drawn_by_its_seed():
    first, again, other = (
        snapshots.regulatory(2.0, circuit="random", num_snapshots=3, num_cells=20, seed=seed)
        for seed in (4, 4, 5)
    )
    np.testing.assert_array_equal(first.circuit.edges, again.circuit.edges)
    assert not np.array_equal(first.circuit.edges, other.circuit.edges)
    assert {end.dim for end in first.marginals} == {10} == {first.circuit.dim}


def test_options_of_a_circuit_are_checked():
    for options, message in (
        ({"circuit": "myelod"}, "did you mean 'myeloid'"),
        ({"noise": 0.0}, "noise = 0.0 is not allowed: must be above zero"),
        ({"num_snapshots": 2}, "num_snapshots = 2 is not allowed: must be an integer >= 3"),
        ({"num_cells": 1}, "num_cells = 1 is not allowed: must be an integer >= 2"),
    ):
        with pytest.raises(ValueError, match=message):
            snapshots.make_snapshots("regulatory", 2.0, **options)
