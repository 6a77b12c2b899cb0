"""Many seeds at once: each as alone and failing alone; tables, processes, bad input."""

import json
import sys
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

import experiments
from d2ejax import parallel, plotting
from d2ejax.algorithms import base
from experiments import build, checkpoints, loop, sweep, workdir
from experiments.progress import Progress
from experiments.sweeping import (
    capacity,
    one_setting,
    results,
    seeds,
    settings,
    training,
    workers,
)
from experiments.sweeping.settings import Run
from tests.experiments import small, toy

TOTAL, EVERY, MOST_SKIPPED, SEEDS = 60, 20, 10, (0, 1, 2)
CONFIG = """
from experiments.configs import base

def get_config():
    config = base.get_config()
    config.loop.steps_per_dispatch = 7
    config.loop.checkpoint_every = 20
    config.loop.max_consecutive_skipped = 10
    return config
"""


def descent(bad_words=()):
    """Noisy descent on |w - 1|², NaN for the seeds whose keys have one of these last words."""

    def init_params(key):
        # The words of the key that the parameters are drawn from say which seed it is.
        word = jax.random.key_data(key)[-1]
        bad = jnp.any(word == jnp.asarray([*bad_words, 0], jnp.uint32)[: len(bad_words) or 1])
        return {"w": jax.random.normal(key, (3,)), "bad": bad.astype(jnp.float32)}

    def draw(key, params):
        noise = jax.random.normal(key, (3,))

        def loss(params):
            value = jnp.sum((params["w"] - 1.0 + 0.1 * noise) ** 2)
            return jnp.where(params["bad"] > 0, jnp.nan, value), {}

        return loss

    return base.of_one_model(
        draw,
        init_params=init_params,
        optimiser=optax.adam(1e-2),
        ema_decay=0.9,
        axis_name=parallel.AXIS,
    )


def word_of(seed):
    """What `descent` knows a seed by."""
    params_key, _ = jax.random.split(jax.random.key(seed))
    return int(jax.random.key_data(params_key)[-1])


def trainers(algorithm, num_devices=1):
    """The trainer of one seed, and that of many."""
    devices = jax.local_devices()[:num_devices]
    return tuple(
        parallel.data_parallel(a, devices=devices)
        for a in (algorithm, seeds.together(algorithm))
    )


def assert_close(found, expected, rtol=1e-5):
    """Keys and counters to the bit, all else but for rounding."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if jax.dtypes.issubdtype(b.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        if np.issubdtype(np.asarray(b).dtype, np.integer):
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


def assert_each_as_alone(algorithm, num_steps, *, num_devices, rtol=1e-5):
    alone, many = trainers(algorithm, num_devices)
    state, metrics = many.run(many.init(seeds.keys(SEEDS)), num_steps)
    states = seeds.split(many.gather(state), many.own, len(SEEDS))
    for i, seed in enumerate(SEEDS):
        expected, expected_metrics = alone.run(alone.init(jax.random.key(seed)), num_steps)
        assert_close(states[i], alone.gather(expected), rtol)
        own = {name: value[i] for name, value in metrics.items()}
        assert_close(own, expected_metrics, rtol)
    return states


@pytest.fixture(scope="module")
def pair():
    """Both trainers of a descent in which the second seed is never finite."""
    return trainers(descent((word_of(1),)))


@pytest.fixture(autouse=True, scope="module")
def standard_promotion():
    # Optax multiplies floats by integers.
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_seeds_together_are_each_as_alone():
    # One of them is never finite, which the others are not to see.
    states = assert_each_as_alone(descent((word_of(1),)), 4, num_devices=2)
    assert [int(state.consecutive_skipped) for state in states] == [0, 4, 0]
    assert [int(state.skipped) for state in states] == [0, 4, 0]
    first, failed, last = (state.model.params["w"] for state in states)
    assert not np.allclose(first, last)
    params_key, _ = jax.random.split(jax.random.key(1))
    np.testing.assert_array_equal(failed, jax.random.normal(params_key, (3,)))


def test_seeds_of_ipf_are_each_as_alone():
    # From an energy: buffers, refreshed at some steps, and a switch between half-steps.
    changes = {
        "ipf.backward_steps": 2,
        "ipf.forward_steps": 2,
        "ipf.forward_loss": "log_variance",
        "optimiser.name": "adamw",  # The quickest to compile.
    }
    experiment = build.build(small.gaussians(changes))
    assert experiment.total_steps == 4
    assert_each_as_alone(experiment.algorithm, 4, num_devices=1, rtol=1e-4)


def test_split_and_join_are_inverse(pair):
    alone, many = pair
    gathered = many.gather(many.init(seeds.keys(SEEDS)))
    joined = seeds.join(seeds.split(gathered, many.own, 3), many.own)
    assert_close(joined, gathered, rtol=0)
    like = seeds.template(alone)
    first = seeds.split(gathered, many.own, 3)[0]
    assert jax.tree.map(jnp.shape, like) == jax.tree.map(jnp.shape, first)
    assert jax.tree.map(lambda x: x.dtype, like) == jax.tree.map(lambda x: x.dtype, first)


SETTINGS = ConfigDict({"keep": 2, "keep_best": False, "tensorboard": False})


def plan(total_steps=TOTAL):
    return toy.plan(total_steps, checkpoint_every=EVERY, max_consecutive_skipped=MOST_SKIPPED)


def train(pair, folder, which=SEEDS, total_steps=TOTAL, at_once=3):
    runs = [Run(seed, None, folder / f"seed_{seed}") for seed in which]
    for run in runs:
        run.directory.mkdir(parents=True, exist_ok=True)
    alone, many = pair
    probe = lambda state: {"w": float(state.model.params["w"][0])}  # noqa: E731
    room = training.Room(many, plan(total_steps), seeds.template(alone), SETTINGS, probe)
    training.train(room, runs, lambda _: at_once)
    return {run.seed: training.read(run) for run in runs}


@pytest.fixture(scope="module")
def whole(pair, tmp_path_factory):
    """Three seeds trained without an interruption: the folder and what was saved last."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(pair, folder)


def test_what_is_saved_is_an_ordinary_run(pair, whole, tmp_path):
    alone, _ = pair
    folder, saved = whole[0] / "seed_2", whole[1][2]
    probe = lambda state: {"w": float(state.model.params["w"][0, 0])}  # noqa: E731
    with Progress(TOTAL) as progress:
        loop.train(
            alone,
            plan(),
            key=jax.random.key(2),
            saved=None,
            directory=tmp_path,
            keep=2,
            progress=progress,
            probe=probe,
            process_start=time.perf_counter(),
        )
    records, expected = (workdir.read_records(where, TOTAL) for where in (folder, tmp_path))
    assert [(r.keys(), r["step"]) for r in records] == [(r.keys(), r["step"]) for r in expected]
    for name in ("loss", "w"):
        values, wanted = (
            [r[name] for r in which if name in r] for which in (records, expected)
        )
        np.testing.assert_allclose(values, wanted, rtol=1e-5)
    ordinary = checkpoints.read(tmp_path / workdir.CHECKPOINTS)
    assert saved.step == ordinary.step == TOTAL
    shapes = [{name: x["shape"] for name, x in s.leaves.items()} for s in (saved, ordinary)]
    assert shapes[0] == shapes[1]
    assert saved.metadata["seeds_at_once"] == 3
    assert saved.metadata["times"]["train"] > 0


def test_the_seed_that_fails_says_so_and_the_others_go_on(whole):
    folder, saved = whole
    assert [training.failure(saved[seed], MOST_SKIPPED) is None for seed in SEEDS] == [
        True,
        False,
        True,
    ]
    assert saved[1].step < EVERY
    assert "were not finite, at step 14" in training.failure(saved[1], MOST_SKIPPED)
    records = workdir.read_records(folder / "seed_1", TOTAL)
    assert max(record["step"] for record in records) == saved[1].step
    assert all(record["loss"] is None for record in records)


def test_what_was_killed_between_two_saves_catches_up(pair, whole, tmp_path):
    train(pair, tmp_path, which=(0,), total_steps=40)
    train(pair, tmp_path, which=(2,), total_steps=20)
    resumed = train(pair, tmp_path)
    for seed in (0, 2):
        assert resumed[seed].step == TOTAL
        for name, array in whole[1][seed].arrays.items():
            np.testing.assert_allclose(resumed[seed].arrays[name], array, rtol=1e-5, atol=1e-6)
        expected = [r["step"] for r in workdir.read_records(whole[0] / f"seed_{seed}", TOTAL)]
        steps = [r["step"] for r in workdir.read_records(tmp_path / f"seed_{seed}", TOTAL)]
        assert steps == expected


def test_nothing_is_done_twice(pair, whole, monkeypatch):
    monkeypatch.setattr(training, "_train_batch", lambda *_: pytest.fail("trained again"))
    train(pair, whole[0])


def test_next_batch_is_of_the_lowest_step():
    assert training.next_batch({0: 40, 1: 20, 2: 20, 3: 20}, 2) == [1, 2]
    assert training.next_batch({0: 40}, 2) == [0]


def test_a_signal_saves_all_seeds(pair, tmp_path, monkeypatch):
    class Asked:
        signum = 15

    class Deferred:
        def __enter__(self):
            return Asked()

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(training.signals, "deferred", Deferred)
    with pytest.raises(training.Stopped, match="SIGTERM at step 7/60"):
        train(pair, tmp_path, which=(0, 2))
    steps = [workdir.latest_step(tmp_path / f"seed_{s}" / workdir.CHECKPOINTS) for s in (0, 2)]
    assert steps == [7, 7]


def test_memory_decides_how_many(pair, monkeypatch):
    _, many = pair
    needed = [many.memory(jax.eval_shape(many.init, seeds.keys(range(n)))) for n in (1, 8)]
    assert 0 < needed[0] < needed[1]
    usable = capacity._USABLE
    monkeypatch.setattr(capacity, "free_bytes", lambda: needed[1] / usable)
    assert capacity.seeds_at_once(many, 8) == 8
    assert capacity.seeds_at_once(many, 8, sharers=2) == 4
    monkeypatch.setattr(capacity, "free_bytes", lambda: None)
    assert capacity.seeds_at_once(many, 8) == 8
    assert capacity.fitting(8, 100.0, 1.0) == 1


def test_free_memory_is_that_of_the_container(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable:    3000 kB\n")
    assert capacity.free_on_host(meminfo, tmp_path) == 3000 * 1024
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    assert capacity.free_on_host(meminfo, tmp_path) == 600000
    (tmp_path / "memory.max").write_text("max\n")
    assert capacity.free_on_host(meminfo, tmp_path) == 3000 * 1024


class Experiment(types.SimpleNamespace):
    pass


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs a command line on the toy; returns status, stdout and stderr."""
    config = tmp_path / "toy.py"
    config.write_text(CONFIG)
    built = []

    def build_it(config):
        built.append(config)
        algorithm = descent((word_of(1),))
        return Experiment(algorithm=algorithm, total_steps=TOTAL, phase_of=plan().phase_of)

    def evaluate(config, judged, state, directory):
        assert state.key.shape == () and state.model.params["w"].shape == (3,)
        value = 0.1 * (config.seed + 1) + config.optimiser.learning_rate
        return {"bridge_gap": value, "bridge_gap_limit": 0.05, "path_kl": None}

    class Judge(types.SimpleNamespace):
        def __init__(self, experiment):
            super().__init__(experiment=experiment)

        def probe(self, state):
            assert state.key.shape == (1,)
            return {"bridge_gap": float(np.abs(state.model.params["w"][0]).sum())}

    monkeypatch.setattr(
        experiments, "build", types.SimpleNamespace(build=build_it), raising=False
    )
    monkeypatch.setattr(one_setting, "Judge", Judge)
    monkeypatch.setattr("experiments.report.evaluate", evaluate)
    monkeypatch.setattr("experiments.export.write", lambda *_: None)

    def run(*args):
        status = sweep.main(["sweep", f"--config={config}", f"--workdir={tmp_path}/s", *args])
        said = capsys.readouterr()
        return status, said.out, said.err

    run.built, run.folder = built, tmp_path / "s"
    return run


def test_a_sweep_leaves_runs_a_table_and_a_figure(call):
    vary = "--vary=optimiser.learning_rate=1e-2,3e-3"
    status, out, err = call("--seeds=0,1,2", vary)
    assert status == sweep._FAILED  # For a seed of each setting has failed.
    assert err.count("seed 1: the last 14 gradient steps were not finite, at step 14") == 2
    names = ["optimiser.learning_rate=0.01", "optimiser.learning_rate=0.003"]
    for name in names:
        for seed in (0, 2):
            run = call.folder / name / f"seed_{seed}"
            assert workdir.is_finished(run)
            assert workdir.read_config(run).seed == seed
        assert not workdir.is_finished(call.folder / name / "seed_1")
    lines = (call.folder / results.RECORDS).read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["setting"] for record in records] == [
        {"optimiser.learning_rate": 0.01},
        {"optimiser.learning_rate": 0.003},
    ]
    assert records[0]["finished"] == [0, 2] and list(records[0]["failed"]) == ["1"]
    np.testing.assert_allclose(records[0]["bridge_gap"], 0.21)
    np.testing.assert_allclose(records[0]["bridge_gap_standard_error"], 0.1)
    assert "path_kl" not in records[0]
    table = (call.folder / results.TABLE).read_text()
    assert "| 0.01 | 2, 1 failed | 0.2100 ± 0.1000 (0.0500) |" in table
    assert table in out
    assert (call.folder / results.FIGURE).stat().st_size > 10_000

    # Another seed is all that is left to do.
    call.built.clear()
    status, out, _ = call("--seeds=0,2", vary)
    assert status == 0 and not call.built


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "--seeds=: must be different seeds between commas"),
        (("--seeds=0,0",), "--seeds=0,0: must be different"),
        (("--seeds=0,-1",), "--seeds=0,-1: must be different seeds"),
        (("--seeds=4294967296",), "≤ 4294967295"),
        (("--seeds=0", "--vary=batch_size="), "--vary=batch_size=: must be KEY=VALUE"),
        (("--seeds=0", "--vary=batch_sise=8"), "unknown key: did you mean batch_size?"),
        (("--seeds=0", "--vary=batch_size=64,0"), "batch_size = 0: must be an integer"),
        (("--seeds=0", "--vary=batch_size=64,64"), "given twice"),
        (("--seeds=0", *2 * ("--vary=batch_size=64",)), "--vary: batch_size is given twice"),
        (("--seeds=0", "--config.seed=1"), "--config.seed: must not be given"),
        (("--seeds=0", "--vary=seed=1,2"), "must not be the seed"),
        (("--seeds=0", "--vary=parallel.cpu_devices=1,2"), "the CPU is cut"),
        (
            ("--seeds=0", "--config.batch_size=64", "--vary=batch_size=64,128"),
            "must not be given as --config.batch_size as well",
        ),
        (("--seeds=0", "--mode=sample"), "--mode=sample: must be train"),
        (("--seeds=0", "--processes=0"), "--processes=0"),
        (("--seeds=0", "--vary=batch_size=64,72"), "batch_size = 72: must be"),
    ],
)
def test_bad_input_is_one_line_before_anything_runs(call, args, said):
    status, out, err = call(*args)
    assert status == sweep._BAD_INPUT and not out
    assert err.startswith("error: ") and said in err and err.count("\n") == 1
    assert not call.folder.exists() and not call.built


def test_values_are_split_outside_brackets():
    assert settings.split_values("(1,2),[3,{4,5}],6") == ["(1,2)", "[3,{4,5}]", "6"]


def test_the_mean_has_an_error_of_two_values_at_least():
    assert results.mean_and_error([3.0]) == (3.0, None)
    mean, error = results.mean_and_error([1.0, 2.0, 6.0])
    assert mean == 3.0
    np.testing.assert_allclose(error, np.sqrt(7.0 / 3.0))


def test_the_rate_is_that_of_all_seeds():
    together = {"gradient_steps": 100, "steps_per_second": 10.0, "seeds_at_once": 2}
    # Two seeds together take ten seconds, and one alone five.
    alone = {"gradient_steps": 100, "steps_per_second": 20.0}
    np.testing.assert_allclose(results._rate([together, together, alone]), 300 / 15)
    assert results._rate([]) is None


def in_processes(tmp_path, count, names=("",), which=SEEDS):
    args = loop.Times  # Never looked at.

    class Named(settings.Setting):
        def run(self, seed):
            return Run(seed, None, self.directory / f"seed_{seed}")

    made = tuple(Named({}, name, ("--flag",), args, tmp_path / name) for name in names)
    return settings.Sweep(made, which, tmp_path, count, 0, 0, {})


def test_seeds_are_shared_out_where_settings_are_too_few(tmp_path):
    (tmp_path / "seed_1").mkdir()
    workdir.write_json(tmp_path / "seed_1" / workdir.SUMMARY, {"finished": True})
    jobs = list(workers.jobs(in_processes(tmp_path, 2, which=(0, 1, 2, 3))))
    assert [job.seeds for job in jobs] == [(0,), (2, 3)]
    jobs = list(workers.jobs(in_processes(tmp_path, 2, names=("a", "b", "c"))))
    assert [(job.setting.name, job.seeds) for job in jobs] == [(n, SEEDS) for n in "abc"]
    command = workers.command(in_processes(tmp_path, 2), jobs[0])
    assert command[1:] == [
        *("-m", "experiments.sweep", "--flag", "--seeds=0,1,2"),
        *(f"--workdir={tmp_path}/a", "--seeds_at_once=0", "--sharers=2"),
    ]


def test_processes_are_waited_for_and_heard(tmp_path, monkeypatch, capsys):
    code = "import sys; print('error: bad' if 'b' in sys.argv else 'fine'); sys.exit({})"
    status = {"a": 0, "b": 2, "c": 1}
    monkeypatch.setattr(
        workers,
        "command",
        lambda _, job: [
            *(sys.executable, "-c", code.format(status[job.setting.name])),
            job.setting.name,
        ],
    )
    with pytest.raises(workers.InputError, match=r"^bad$"):
        workers.train(in_processes(tmp_path, 2, names=("a", "b", "c")))
    said = capsys.readouterr()
    assert "a, seeds 0, 1, 2: done" in said.out
    assert "c, seeds 0, 1, 2: ended with status 1: fine" in said.err
    assert Path(tmp_path / "a" / "seeds_0_1_2.log").read_text() == "fine\n"


def test_the_figure_draws_what_there_is():
    outcome = plotting.Outcome(
        "gap",
        {"a": [0.1, 0.2], "b": [0.3]},
        {"a": ([1, 2, 3], [[3, 2, 1], [4, 3, 2]]), "b": ([1], [[1.0]])},
        ("limit", 0.05),
    )
    figure = plotting.sweep([outcome, outcome._replace(curves={})], title="sweep")
    curves, hidden, finals, others = figure.axes
    assert len(curves.lines) == 2  # Of one setting, and the limit.
    np.testing.assert_allclose(curves.lines[0].get_ydata(), [3.5, 2.5, 1.5])
    assert [label.get_text() for label in finals.get_yticklabels()] == ["a", "b"]
    bars = [line.get_segments()[0][:, 0] for line in finals.collections]
    np.testing.assert_allclose(bars, [[0.1, 0.2]])  # Of one seed there is no error.
    assert not hidden.get_visible() and others.get_title() == "gap"
    with pytest.raises(ValueError, match="got none"):
        plotting.sweep([outcome._replace(finals={})], title="empty")
