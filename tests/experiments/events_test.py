"""Event files for TensorBoard: every record once, however often the run was killed."""

import struct

import pytest

from experiments import events, workdir

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")


def record(step, loss):
    return {"step": step, "phase": "forward 1", "loss": loss, "steps_per_second": 7.0}


def events_in(path):
    """The events of a TFRecord file: each its length, a checksum, itself and another one."""
    content, at = path.read_bytes(), 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        event = event_pb2.Event()
        event.ParseFromString(content[at + 12 : at + 12 + length])
        yield event
        at += 16 + length


def shown(directory):
    """What TensorBoard shows: (step, value) by tag, after what a later start purges."""
    points = {}
    for path in sorted((directory / workdir.EVENTS).iterdir()):
        for event in events_in(path):
            if event.HasField("session_log"):
                for tag, found in points.items():
                    points[tag] = [point for point in found if point[0] < event.step]
            for value in event.summary.value:
                points.setdefault(value.tag, []).append((event.step, value.simple_value))
    return points


def run(directory, steps, *, begun, offset=0.0):
    """Writes records after a checkpoint at the step `begun`, and dies of it."""
    with pytest.raises(KeyboardInterrupt), events.writer(directory, True, begun) as listener:
        workdir.trim_metrics(directory, begun)
        for step in steps:
            workdir.append_metrics(directory, record(step, step + offset))
            listener(record(step, step + offset))
        raise KeyboardInterrupt


def test_no_point_is_shown_twice_after_a_kill(tmp_path):
    run(tmp_path, range(1, 6), begun=0)
    run(tmp_path, range(4, 7), begun=3, offset=0.5)
    points = shown(tmp_path)
    assert points["loss"] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.5), (5, 5.5), (6, 6.5)]
    assert points["loss"] == [(r["step"], r["loss"]) for r in workdir.read_records(tmp_path, 6)]
    assert points.keys() == {"loss", "steps_per_second"}


def test_records_from_before_are_written_first(tmp_path):
    for step in (1, 2, 3):
        workdir.append_metrics(tmp_path, record(step, float("nan") if step == 2 else step))
    run(tmp_path, [3, 4], begun=2)
    points = shown(tmp_path)
    assert points["loss"] == [(1, 1.0), (3, 3.0), (4, 4.0)]
    assert [step for step, _ in points["steps_per_second"]] == [1, 2, 3, 4]


def test_what_is_not_finite_is_left_out(tmp_path, caplog):
    with events.writer(tmp_path, True, 0) as listener:
        listener(record(1, float("nan")) | {"anchors": None})
        listener(record(2, float("inf")))
    assert shown(tmp_path).keys() == {"steps_per_second"}
    assert not caplog.records


def test_there_are_none_unless_they_are_wanted(tmp_path):
    with events.writer(tmp_path, False, 0) as listener:
        listener(record(1, 1.0))
    assert list(tmp_path.iterdir()) == []
