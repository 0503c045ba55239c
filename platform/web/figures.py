"""Numbers of usage as people read them: few digits, and a unit. Knows no page."""

from __future__ import annotations


def short(number: int) -> str:
    """1234567 -> "1.23 M": three digits, where not all of them say more."""
    if number < 10_000:
        return f"{number:,}".replace(",", "\u202f")
    for unit in ("k", "M", "G", "T"):
        scaled = number / 1000
        if scaled < 999.5 or unit == "T":
            break
        number = round(scaled)
    return f"{scaled:.{max(0, 3 - len(str(int(scaled))))}f}\u202f{unit}"


def percent(share: float | None) -> str:
    if share is None:
        return "–"
    if 0 < share < 0.001:
        return "<0.1%"
    return f"{share:.1%}"


def ms(milliseconds: float | None) -> str:
    """1234 -> "1.23 s"."""
    if milliseconds is None:
        return "–"
    if milliseconds < 1000:
        return f"{milliseconds:.0f}\u202fms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1000:.2f}\u202fs"
    minutes, seconds = divmod(round(milliseconds / 1000), 60)
    return f"{minutes}\u202fmin {seconds}\u202fs"


def money(micros: int, currency: str) -> str:
    """Millionths of a currency's unit, as two decimals where they are enough."""
    digits = 2 if micros == 0 or micros >= 10_000 else 6
    return f"{micros / 1e6:,.{digits}f}\u202f{currency}".replace(",", "\u202f")
