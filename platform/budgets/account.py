"""What one tenant or key has spent in one period, as this server knows it. Knows no row and no request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from loraplex.platform.budgets.rules import NOTHING, Budget, Place, Spending
from loraplex.platform.ledger.prices import TokenPrice
from loraplex.platform.ledger.record import Tokens


class BudgetAccount:
    """For the tasks of one event loop.

    written: what the database had at the last look, of all servers. read_at: when that began, None: never. used_at:
    when a request came last.
    """

    __slots__ = ("_reserved", "_settled", "read_at", "used_at", "written")

    def __init__(self, now: float) -> None:
        self.written = NOTHING
        self.read_at: float | None = None
        self.used_at = now
        self._reserved = NOTHING
        self._settled: dict[int, Spending] = {}  # by the ledger's epoch: what the database did not have at that look

    @property
    def spent(self) -> Spending:
        """With what requests that run here may come to spend."""
        spent = self.written.plus(self._reserved)
        for spending in self._settled.values():
            spent = spent.plus(spending)
        return spent

    @property
    def is_idle(self) -> bool:
        return self._reserved == NOTHING and not self._settled

    def reserve(self, most: Spending) -> None:
        self._reserved = self._reserved.plus(most)

    def settle(self, reserved: Spending, spent: Spending, epoch: int) -> None:
        """epoch: of the ledger, in which the record of it was settled."""
        self._reserved = self._reserved.minus(reserved)
        if spent != NOTHING:
            self._settled[epoch] = self._settled.get(epoch, NOTHING).plus(spent)

    def hear(self, written: Spending, epochs: int, read_at: float) -> None:
        """What the database has. epochs: of the ledger, that it had for sure. What it may have had is counted twice
        until the next look, rather than not at all."""
        self.written, self.read_at = written, read_at
        self._settled = {epoch: spent for epoch, spent in self._settled.items() if epoch >= epochs}


class BudgetClaim(NamedTuple):
    """Somebody whose budget a request counts for. whose: in words."""

    place: Place
    whose: str
    budget: Budget
    account: BudgetAccount


class Reservation:
    """What a request may come to spend, until it is settled. used_percent: of the tightest budget, with it."""

    def __init__(
        self, accounts: Sequence[BudgetAccount], most: Spending, price: TokenPrice | None, used_percent: int
    ) -> None:
        self.used_percent = used_percent
        self._accounts = accounts
        self._most = most
        self._price = price

    def settle(self, tokens: Tokens, epoch: int) -> None:
        """Only the first time counts."""
        accounts, self._accounts = self._accounts, ()
        for account in accounts:
            account.settle(self._most, spending_of(tokens, self._price), epoch)


UNBOUNDED = Reservation((), NOTHING, None, 0)
"""Of every request that counts for no budget."""


def spending_of(tokens: Tokens, price: TokenPrice | None) -> Spending:
    cost = 0 if price is None else price.cost_of(tokens)
    return Spending(tokens.prompt_tokens + tokens.completion_tokens, cost)
