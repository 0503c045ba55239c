"""How often passwords may be tried: for one account, and from one address. In memory, and little of it.

Knows names and addresses; knows no password. Each server counts for itself.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MAX_ENTRIES = 10_000
"""Accounts and addresses that are remembered; of more, those that were tried least lately are forgotten."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many tries at once, and then one every `seconds`."""

    burst: int
    seconds: float


PER_ACCOUNT = Rate(burst=10, seconds=30)
PER_ADDRESS = Rate(burst=30, seconds=10)


class LoginThrottle:
    """A try counts when it begins, so that many at once are no way around it; the right password gives it back."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._spent: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()  # tries, at that moment

    def admit(self, login: str, address: str) -> float:
        """Seconds to wait before the next try; 0: this one may go ahead, and is counted."""
        wanted = self._buckets(login, address)
        wait = max((self._level(key, rate) + 1 - rate.burst) * rate.seconds for key, rate in wanted)
        if wait > 0:
            return wait
        for key, rate in wanted:
            self._set(key, self._level(key, rate) + 1)
        return 0.0

    def succeeded(self, login: str, address: str) -> None:
        """The try was whose the account is: what went wrong for the account before is forgotten."""
        (account, _), (place, rate) = self._buckets(login, address)
        self._spent.pop(account, None)
        self._set(place, max(self._level(place, rate) - 1, 0.0))

    def _buckets(self, login: str, address: str) -> tuple[tuple[tuple[str, str], Rate], tuple[tuple[str, str], Rate]]:
        return (("account", login[:64]), PER_ACCOUNT), (("address", _network(address)), PER_ADDRESS)

    def _level(self, key: tuple[str, str], rate: Rate) -> float:
        """Tries that count now: each stops counting after `rate.seconds`, one by one."""
        tries, at = self._spent.get(key, (0.0, 0.0))
        return max(tries - (self._clock() - at) / rate.seconds, 0.0)

    def _set(self, key: tuple[str, str], tries: float) -> None:
        self._spent[key] = tries, self._clock()
        self._spent.move_to_end(key)
        if len(self._spent) > MAX_ENTRIES:
            self._spent.popitem(last=False)


def _network(address: str) -> str:
    """Whoever has one address of IPv6 has 2**64 of them."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if parsed.version == 6:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)
