"""Numbers of usage as people read them."""

from __future__ import annotations

from loraplex.platform.web.figures import money, ms, percent, short


def test_three_digits_and_a_unit() -> None:
    """Of counts and times; small ones are told whole, and what is not known is a dash."""
    counts = {0: "0", 9_999: "9_999", 10_000: "10.0_k", 999_499: "999_k", 999_500: "1.00_M", 12_345_678_901: "12.3_G"}
    assert {number: short(number).replace("\u202f", "_") for number in counts} == counts
    times = {0: "0_ms", 999: "999_ms", 1234: "1.23_s", 61_500: "1_min 2_s", None: "–"}
    assert {time: ms(time).replace("\u202f", "_") for time in times} == times
    assert [percent(share) for share in (None, 0, 0.0004, 0.4149, 1)] == ["–", "0.0%", "<0.1%", "41.5%", "100.0%"]


def test_small_costs_keep_their_digits() -> None:
    """A request may cost less than a cent."""
    costs = {0: "0.00_EUR", 362: "0.000362_EUR", 10_000: "0.01_EUR", 1_234_567_890_000: "1_234_567.89_EUR"}
    assert {micros: money(micros, "EUR").replace("\u202f", "_") for micros in costs} == costs
