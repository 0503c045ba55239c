"""The target table: verdicts follow from figures, and a peer that failed is never counted as beaten."""

from __future__ import annotations

import pytest
from peer_measurements import MEASUREMENTS
from peer_targets import TARGETS, Target, judge

RATE = Target("rate", "work", "peer", "ours.tok_s", "theirs.tok_s", 2.0)
DELAY = Target("delay", "work", "peer", "ours.ms", None, 50, at_most=True, unit="ms")


@pytest.mark.parametrize(("ours", "verdict"), [(300.0, "pass"), (200.0, "pass"), (199.0, "MISS")])
def test_a_rate_is_divided_by_the_peers_and_must_reach_its_bound(ours: float, verdict: str) -> None:
    (row,) = judge([RATE], {"ours.tok_s": ours, "theirs.tok_s": 100.0}, {})

    assert (row.value, row.verdict) == (ours / 100, verdict)


@pytest.mark.parametrize(("ours", "verdict"), [(12.0, "pass"), (50.0, "pass"), (51.0, "MISS")])
def test_a_time_must_stay_within_its_bound(ours: float, verdict: str) -> None:
    (row,) = judge([DELAY], {"ours.ms": ours}, {})

    assert row.verdict == verdict


def test_a_failed_peer_is_told_and_is_no_win() -> None:
    (row,) = judge([RATE], {"ours.tok_s": 300.0}, {"theirs": "it ended with code 1"})

    assert (row.value, row.verdict, row.why) == (None, "failed", "theirs: it ended with code 1")


@pytest.mark.parametrize("figures", [{}, {"ours.tok_s": 300.0}, {"ours.tok_s": 300.0, "theirs.tok_s": 0.0}])
def test_without_both_figures_a_row_is_not_measured(figures: dict[str, float]) -> None:
    (row,) = judge([RATE], figures, {})

    assert row.verdict == "not measured"


def test_every_row_names_measurements_that_exist_and_has_a_key_of_its_own() -> None:
    assert {name for target in TARGETS for name in target.measurements} == set(MEASUREMENTS)
    assert len({target.key for target in TARGETS}) == len(TARGETS)


def test_recorded_figures_give_the_recorded_verdicts() -> None:
    figures = {
        "loraplex.decode_64_64.c32.8_adapters.output_tok_s": 620.0,
        "vllm_lora.decode_64_64.c32.8_adapters.output_tok_s": 62.0,
        "peft.decode_64_64.c32.8_adapters.output_tok_s": 155.0,
        "loraplex_http.c1.base.tpot_ms_p50": 10.0,
        "loraplex_http.c1.1_adapter.tpot_ms_p50": 12.0,
        "scale.kv_waste": 0.0312,
    }
    rows = {row.target.key: row for row in judge(TARGETS, figures, {})}

    assert rows["offline_mixed_vllm"].verdict == "pass"
    assert (rows["offline_mixed_peft"].value, rows["offline_mixed_peft"].verdict) == (4.0, "MISS")
    assert rows["http_one_adapter"].verdict == "MISS"
    assert rows["kv_waste"].target.value_text(0.0312) == "3.1%"
    assert rows["zipf"].verdict == "not measured"
