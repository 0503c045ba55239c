"""A name means the same thing every time, and nobody learns of another tenant's."""

from dataclasses import replace

import pytest
from api_running import VERSION
from hypothesis import given
from hypothesis import strategies as st

from loraplex.adapters.errors import AdapterNotFound, InvalidName
from loraplex.adapters.registry import Target
from loraplex.platform.catalog import Catalog, choose
from loraplex.platform.errors import ApiError, to_api_error
from loraplex.platform.tenants import Principal

pytestmark = pytest.mark.anyio

ACME = Principal(key_id="k1", tenant_id="t1", tenant="acme", scopes=frozenset({"inference"}), salt=b"1")
OTHER = Principal(key_id="k2", tenant_id="t2", tenant="other", scopes=frozenset({"inference"}), salt=b"2")
OPERATOR = Principal(key_id="k3", tenant_id=None, tenant=None, scopes=frozenset({"admin"}), salt=b"")


class OneAdapter:
    """A registry in which acme has `bot`, version 7, made for one base; it counts the questions."""

    def __init__(self, base_model="tiny"):
        self.asked = 0
        self.version = replace(VERSION, base_model=base_model)

    async def resolve(self, tenant_id, name, selector):
        self.asked += 1
        if (tenant_id, name) != ("t1", "bot") or selector not in (None, "prod", "6", "7"):
            raise AdapterNotFound("no such adapter")
        if selector == "6":
            return (Target(replace(self.version, number=6, digest="6" * 64), 1),)
        return (Target(self.version, 1),)


class Unchanged:
    """A registry in which nothing changes, until a test says so."""

    def __init__(self):
        self.listeners = []

    def subscribe(self, listener):
        self.listeners.append(listener)

    async def refresh(self):
        return


async def refusal(catalog, principal, model):
    with pytest.raises((ApiError, InvalidName)) as refused:
        await catalog.resolve(principal, model)
    error = to_api_error(refused.value)
    return error.status, error.body()


@pytest.mark.parametrize(
    "model", ["bot", "acme/bot", "bot@prod", "bot@7", "acme/bot@7", "tiny:bot", "tiny:acme/bot@prod"]
)
async def test_every_spelling_of_an_adapter_means_its_version(model):
    """Bare, with the tenant, by alias or by number, after the base's name: responses carry the canonical name."""
    resolved = await Catalog(OneAdapter(), Unchanged(), "tiny").resolve(ACME, model)

    assert resolved.name == "acme/bot@7"
    assert [adapter.version.digest for adapter in resolved.adapters] == ["d" * 64]


@pytest.mark.parametrize(
    ("model", "name", "weights"),
    [
        ("bot*0.5", "acme/bot@7*0.5", [0.5]),
        ("bot*1.0", "acme/bot@7", [1.0]),
        ("bot@prod*0.7+acme/bot@6*.3", "acme/bot@7*0.7+acme/bot@6*0.3", [0.7, 0.3]),
        ("tiny:bot@6+tiny:bot*-2", "acme/bot@6+acme/bot@7*-2", [1.0, -2.0]),
        ("bot*0.25+bot@6+bot@prod*0.5", "acme/bot@7*0.75+acme/bot@6", [0.75, 1.0]),
        ("bot*0.00001+bot@6*16", "acme/bot@7*0.00001+acme/bot@6*16", [1e-5, 16.0]),
        ("bot+bot*-1", "tiny", []),
        ("bot*0.1+bot*0.2+bot*-0.3", "tiny", []),
        ("bot@6+bot*0", "acme/bot@6", [1.0]),
    ],
)
async def test_a_sum_resolves_each_of_its_names(model, name, weights):
    """Terms of one version become one, and those of no weight none; the canonical name tells the whole sum, and means
    it when it is sent."""
    catalog = Catalog(OneAdapter(), Unchanged(), "tiny")
    resolved = await catalog.resolve(ACME, model)

    assert (resolved.name, [adapter.weight for adapter in resolved.adapters]) == (name, weights)
    assert await catalog.resolve(ACME, resolved.name) == resolved


@pytest.mark.parametrize("weight", ["", "x", "1e3", "16.1", "0.1234567", ".", "1*2", "nan"])
async def test_a_weight_that_is_none_is_refused_with_the_remedy(weight):
    """Unlike a name, a weight is nobody's secret: the answer says what to write."""
    status, body = await refusal(Catalog(OneAdapter(), Unchanged(), "tiny"), ACME, f"bot*{weight}")

    assert (status, body["error"]["code"], body["error"]["param"]) == (400, "invalid_value", "model")
    assert "a*0.7+b*0.3" in body["error"]["message"]


@pytest.mark.parametrize("model", ["bot+nothing", "+bot", "bot+", "bot++bot", "globex/bot*0.5", "tiny+bot", "*0.5"])
async def test_a_sum_with_a_name_that_means_nothing_is_the_same_404(model):
    """One term that is absent, foreign or malformed is a 404 for the request; the base is in every sum as it is."""
    assert (await refusal(Catalog(OneAdapter(), Unchanged(), "tiny"), ACME, model))[0] == 404


async def test_what_does_more_than_add_is_no_part_of_a_sum():
    """Alone, at any weight, it is served; with another it is refused before anything runs."""
    registry = OneAdapter()
    registry.version = replace(registry.version, is_additive=False)
    catalog = Catalog(registry, Unchanged(), "tiny")

    assert (await catalog.resolve(ACME, "bot*0.5")).name == "acme/bot@7*0.5"
    status, body = await refusal(catalog, ACME, "bot@6*0.5+bot")
    assert (status, body["error"]["code"]) == (400, "adapter_not_additive")
    assert "use it alone" in body["error"]["message"]


async def test_a_sum_of_too_many_adapters_is_refused():
    """Each takes device memory and work."""
    status, body = await refusal(Catalog(OneAdapter(), Unchanged(), "tiny"), ACME, "+".join(["bot"] * 9))

    assert (status, body["error"]["param"]) == (400, "model")


async def test_the_base_is_for_everybody_and_only_by_its_exact_name():
    """A tenant and an operator get the base; another spelling is a 404."""
    catalog = Catalog(OneAdapter(), Unchanged(), "tiny")

    for principal in (ACME, OPERATOR):
        resolved = await catalog.resolve(principal, "tiny")
        assert (resolved.name, resolved.adapters) == ("tiny", ())
    assert (await refusal(catalog, ACME, "Tiny"))[0] == 404


@pytest.mark.parametrize(
    "model",
    [
        *("", "..", "../bot", "acme/../bot", "/bot", "acme/", "bot@", "bot@@7", "бот", "bot\0", "a/b/c", "x" * 10_000),
        *("tiny:", "tiny:tiny", "other:bot", "tiny:tiny:bot", ":bot", "bot:tiny"),
    ],
)
async def test_a_malformed_name_is_the_same_404(model):
    """The echo is bounded, and nothing but the name differs from any other 404."""
    status, body = await refusal(Catalog(OneAdapter(), Unchanged(), "tiny"), ACME, model)

    assert status == 404
    assert body["error"]["code"] == "model_not_found"
    assert body["error"]["param"] == "model"
    assert len(body["error"]["message"]) < 300


@pytest.mark.parametrize("model", ["acme/bot", "acme/bot@7", "acme/nothing"])
async def test_foreign_and_absent_are_told_alike(model):
    """The answer for another tenant's adapter is the answer for none, and costs the same questions."""
    there, absent = OneAdapter(), OneAdapter(base_model="another")

    first = await refusal(Catalog(there, Unchanged(), "tiny"), OTHER, model)
    second = await refusal(Catalog(absent, Unchanged(), "tiny"), OPERATOR, model)

    assert first == second
    assert there.asked == absent.asked == 0


async def test_an_adapter_of_another_base_is_refused():
    """A registry may hold adapters of a base that is not served now; they never run on the wrong one."""
    status, body = await refusal(Catalog(OneAdapter(base_model="another"), Unchanged(), "tiny"), ACME, "bot")

    assert status == 404
    assert "another" in body["error"]["message"]


async def test_a_warm_name_asks_nothing_until_its_adapter_changes():
    """Every spelling is asked for once; names that are not there are asked for every time."""
    registry, changes = OneAdapter(), Unchanged()
    catalog = Catalog(registry, changes, "tiny")
    for _ in range(3):
        for model in ("bot", "acme/bot", "bot@7"):
            await catalog.resolve(ACME, model)
    assert registry.asked == 2
    changes.listeners[0](frozenset({"t1/bot"}))
    await catalog.resolve(ACME, "bot")
    assert registry.asked == 3
    for _ in range(2):
        await refusal(catalog, ACME, "nobody")
    assert registry.asked == 5


async def test_what_changes_while_it_is_asked_for_is_not_remembered():
    """The answer stands for this request and no later one."""
    changes = Unchanged()

    class Slow(OneAdapter):
        async def resolve(self, *question):
            changes.listeners[0](frozenset({"t1/bot"}))
            return await super().resolve(*question)

    registry = Slow()
    catalog = Catalog(registry, changes, "tiny")
    for _ in range(2):
        await catalog.resolve(ACME, "bot")
    assert registry.asked == 2


@given(model=st.text(max_size=200))
async def test_any_name_is_a_model_or_the_404(model):
    """No name makes anything else happen."""
    try:
        outcome = (await Catalog(OneAdapter(), Unchanged(), "tiny").resolve(ACME, model)).name
    except (ApiError, InvalidName) as error:
        outcome = to_api_error(error).code
    assert outcome in ("tiny", "acme/bot@7", "model_not_found") or (outcome == "invalid_value" and "*" in model)


def split(*weights):
    """Targets of versions that rise with their place, newest first."""
    numbered = [replace(VERSION, number=number) for number in range(1, len(weights) + 1)]
    return [Target(version, weight) for version, weight in zip(reversed(numbered), weights, strict=True)]


def test_every_version_gets_its_share():
    """Of ten thousand users, within four standard deviations; each of them the same one every time."""
    targets = split(10, 20, 70)
    users = [f"user {number}" for number in range(10_000)]
    chosen = [choose(targets, user).number for user in users]

    assert chosen == [choose(targets, user).number for user in users]
    for target in targets:
        expected = target.weight / 100
        deviation = (expected * (1 - expected) / len(users)) ** 0.5
        assert abs(chosen.count(target.version.number) / len(users) - expected) < 4 * deviation


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(0, 1000), st.text(max_size=20))
def test_a_growing_canary_keeps_whom_it_has(canary, stable, more, user):
    """Whoever got the newest version gets it while its weight rises."""
    before, after = choose(split(canary, stable), user), choose(split(canary + more, stable), user)
    assert (before.number, after.number) in {(1, 1), (1, 2), (2, 2)}


async def test_the_user_decides_and_else_the_key():
    """Two users of one key can get two versions; without a user the key's own choice stands."""
    registry = OneAdapter()
    registry.resolve = lambda *_: answer(split(1, 1))

    async def answer(targets):
        return targets

    catalog = Catalog(registry, Unchanged(), "tiny")
    by_user = {(await catalog.resolve(ACME, "bot", f"user {n}")).name for n in range(20)}
    by_key = {(await catalog.resolve(ACME, "bot")).name for _ in range(20)}
    assert by_user == {"acme/bot@1", "acme/bot@2"}
    assert len(by_key) == 1
