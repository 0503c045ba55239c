"""Budgets in words. Knows no request."""

from __future__ import annotations

from loraplex.platform.budgets.account import BudgetClaim
from loraplex.platform.budgets.rules import Period, Spending, renewal
from loraplex.platform.errors import ApiError

MICROS = 1_000_000

_NAMES: dict[Period, str] = {"day": "daily budget", "month": "monthly budget", "total": "total budget"}


def refusal(claim: BudgetClaim, most: Spending, currency: str) -> ApiError:
    """429 that names the amount that is in the way, of cost before tokens."""
    budget, spent = claim.budget, claim.account.spent
    if budget.cost_micros is not None and spent.cost_micros + most.cost_micros > budget.cost_micros:
        amounts = budget.cost_micros, spent.cost_micros, most.cost_micros
        amount, used, needed = (in_currency(micros, currency) for micros in amounts)
    else:
        amount, used, needed = f"{budget.tokens} tokens", str(spent.tokens), str(most.tokens)
    anew = renewal(budget.period, claim.place[1])
    when = "It does not start anew" if anew is None else f"It starts anew at {anew:%Y-%m-%dT%H:%M:%SZ}"
    message = (
        f"The {_NAMES[budget.period]} of {claim.whose} is {amount}, of which {used} are used or held by running "
        f"requests; this request may need {needed}. {when}. Ask for less in 'max_tokens', or ask the operator for a "
        f"larger budget."
    )
    headers = {"x-should-retry": "false"}
    return ApiError(429, "insufficient_quota", message, type="insufficient_quota", headers=headers)


def in_currency(micros: int, currency: str) -> str:
    """Such as 12.5 USD."""
    whole, rest = divmod(micros, MICROS)
    return f"{whole}.{f'{rest:06d}'.rstrip('0') or '0'} {currency}"
