"""Throughput: every half-step and size is timed beside its floor, and written down."""

import json

import jax
import pytest

from benchmarks import floor, throughput, timing

TINY = floor.Sizes(
    batch_size=4, num_steps=3, num_inputs=2, width=8, depth=2, num_outputs=4, num_features=6
)


def test_sizes_are_those_of_the_network():
    config = timing.configuration(3, "samples", "energy")
    config.network.width, config.batch_size = 32, 16
    assert floor.sizes(config, 3) == floor.Sizes(16, 20, 3, 32, 4, 6, 16)


def test_the_floor_has_the_products_of_a_rollout_and_of_a_scored_batch(monkeypatch):
    lowered = []
    compile_it = jax.jit

    def jit(function):
        lowered.append(compile_it(function).lower(jax.numpy.ones((4, 2))).as_text())
        return compile_it(function)

    monkeypatch.setattr(jax, "jit", jit)
    assert floor.milliseconds(TINY, dispatch=2, repeats=1) > 0
    # Three layers: forward in the rollout and in the batch, back to their weights and to the
    # layers below; the time features there and back.
    assert lowered[0].count("dot_general") == 3 + 3 + 3 + 2 + 2


def test_every_half_step_and_size_is_one_line(monkeypatch, tmp_path, capsys):
    seen = []

    def cost_of_step(config, **_):
        seen.append(config)
        return timing.Cost(2.0, 6.0)

    monkeypatch.setattr(timing, "cost_of_step", cost_of_step)
    monkeypatch.setattr(floor, "milliseconds", lambda *_, **__: 4.0)
    throughput.main(["--batch_size=64,128", "--dim=3", f"--json={tmp_path / 'out.jsonl'}"])
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert len(records) == len(seen) == 12
    assert {record["ratio"] for record in records} == {1.5}
    assert [config.batch_size for config in seen] == [64] * 6 + [128] * 6
    assert {config.target.options.dim for config in seen} == {3}
    assert "D2D likelihood" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        throughput.main(["--batch_size=many"])
