"""The lines of the table that say more than a metric and its ideal."""

from experiments import summary

BASE = {"gradient_steps": 10, "wall_seconds": 2.0, "compile_seconds": 1.0}
SPLIT = {
    "bridge_gap": 0.1178,
    "bridge_gap_limit": 0.0702,
    "gap_discretisation": 0.0702,
    "gap_terminal": 0.0101,
    "gap_path": 0.0375,
    "gap_path_standard_error": 0.0061,
}


def test_a_gap_is_split_on_one_line():
    assert (
        "bridge gap 0.118 = 0.070 discretisation + 0.010 terminal marginal + 0.037 path "
        "(the last two ± 0.006)"
    ) in summary.table(BASE | SPLIT).splitlines()
    negative = SPLIT | {"gap_terminal": -0.0042, "gap_discretisation": -0.0001}
    assert "= -0.000 discretisation - 0.004 terminal marginal +" in summary.table(
        BASE | negative
    )


def test_what_is_not_split_has_no_such_line():
    whole = {k: v for k, v in SPLIT.items() if not k.startswith("gap_")}
    table = summary.table(BASE | whole)
    assert "terminal" not in table
    assert "bridge_gap 0.0702" in table


def test_errors_are_shown_beside_their_floors():
    measured = {
        "conditional_bw_uvp": 3.5,
        "conditional_bw_uvp_floor": 0.25,
        "drift_error": 0.02,
    }
    rows = [line.split() for line in summary.table(BASE | measured).splitlines()]
    assert ["conditional_bw_uvp", "3.5000", "0.2500"] in rows
    assert ["drift_error", "0.0200", "0.0000"] in rows


def test_few_anchors_are_said_and_what_to_do_about_them():
    def last_words(**found):
        lines = summary.table(BASE | found).splitlines()
        return [line for line in lines if "effective anchors" in line]

    (advice,) = last_words(effective_anchors=2.25, closed_form=1.0)
    assert "only 2.2 effective anchors" in advice
    assert "num_anchors, or learn the opposite process with loss 'hybrid'" in advice
    # A hybrid that has handed over already does so.
    (advice,) = last_words(effective_anchors=2.25, closed_form=0.0)
    assert advice.endswith("raise ipf.num_anchors")
    assert not last_words(effective_anchors=40.0, closed_form=1.0)
    assert not last_words(effective_anchors=None)


def test_a_snapshot_left_out_stands_beside_what_there_is_without_training():
    measured = {
        "w1_left_out": 0.16,
        "w1_left_out_floor": 0.05,
        "w1_left_out_previous": 1.0,
        "w1_left_out_next": 1.2,
        "w1_left_out_straight": 0.175,
    }
    lines = summary.table(BASE | measured).splitlines()
    assert ["w1_left_out", "0.1600", "0.0500"] in [line.split() for line in lines]
    assert (
        "W1 to the snapshot left out, without training: the snapshot before 1.0000, the one "
        "after 1.2000, straight lines between them 0.1750"
    ) in lines
    assert not any("left out" in line for line in summary.table(BASE).splitlines())
