"""The page pool never loses a page, never shares one by mistake, and finds a prefix only for whom it is meant."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from loraplex.engine.events import AdapterUse
from loraplex.engine.kv_cache import PagePool, page_hash, root_hash


class PagePoolMachine(RuleBasedStateMachine):
    """Random sequences come with a prefix, grow, register what they filled, and leave."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(8, 4)
        self.owners: list[tuple[list[int], list[bytes]]] = []

    @rule(prefix=st.integers(0, 2), length=st.integers(1, 4))
    def admit(self, prefix: int, length: int) -> None:
        names = [f"{prefix}/{index}".encode() for index in range(length)]
        pages = self.pool.find_prefix(names)
        fresh = self.pool.allocate(length - len(pages))
        if fresh is None:
            self.pool.release(pages)
        else:
            self.owners.append((pages + fresh, names))

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def fill(self, data: st.DataObject) -> None:
        pages, names = data.draw(st.sampled_from(self.owners))
        for page, name in zip(pages, names, strict=True):
            self.pool.register(page, name)

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.owners) - 1))
        self.pool.release(self.owners.pop(index)[0])

    @invariant()
    def pages_are_accounted_for(self) -> None:
        self.pool.check_integrity()
        held = {page for pages, _ in self.owners for page in pages}
        assert self.pool.num_used == len(held)


TestPagePool = PagePoolMachine.TestCase
TestPagePool.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)


def test_a_registered_page_is_found_after_its_owner_left():
    """A cached prefix survives its sequence, and is handed out with a reference of its own."""
    pool = PagePool(2, 4)
    pages = pool.allocate(1)
    assert pages is not None
    pool.register(pages[0], b"name")
    pool.release(pages)

    assert pool.find_prefix([b"name", b"other"]) == pages
    assert pool.num_used == 1


def test_cached_pages_are_evicted_when_memory_is_needed():
    """Caching never makes an allocation fail, and an evicted prefix is not found any more."""
    pool = PagePool(2, 4)
    first = pool.allocate(2)
    assert first is not None
    for page, name in zip(first, (b"a", b"b"), strict=True):
        pool.register(page, name)
    pool.release(first)

    assert pool.allocate(2) is not None
    assert pool.find_prefix([b"a"]) == []


def test_without_the_prefix_cache_nothing_is_found():
    """The switch turns sharing off altogether."""
    pool = PagePool(2, 4, prefix_cache=False)
    pages = pool.allocate(1)
    assert pages is not None
    pool.register(pages[0], b"name")
    pool.release(pages)

    assert pool.find_prefix([b"name"]) == []


OWNERS = st.tuples(st.text(max_size=8), st.binary(max_size=8))
USE = st.builds(AdapterUse, st.sampled_from("ab"), st.sampled_from([1.0, 0.5, -1.0]), st.just(0))
USES = st.lists(USE, max_size=2)


@given(left=OWNERS, right=OWNERS, left_uses=USES, right_uses=USES)
def test_different_owners_never_share_a_chain(left, right, left_uses, right_uses):
    """Model, tenant salt and each adapter with its scale separate the hashes; no field can imitate another."""
    assert (root_hash(*left) == root_hash(*right)) == (left == right)
    first, second = (page_hash(root_hash(*left), [1, 2], 0, uses) for uses in (left_uses, right_uses))
    assert (first == second) == (left_uses == right_uses)


def test_pages_before_an_adapter_starts_are_those_of_the_base():
    """From the page in which it starts on they are its own, and another start in that page is another page."""
    root = root_hash("model", b"")
    base = page_hash(root, [1, 2, 3, 4], 0, ())

    def chain(*starts):
        uses = [AdapterUse("a" * 64, start=start) for start in starts]
        first = page_hash(root, [1, 2, 3, 4], 0, uses)
        return first, page_hash(first, [5, 6, 7, 8], 4, uses)

    assert chain(4)[0] == chain(7)[0] == chain(8)[0] == base
    assert chain(8)[1] == page_hash(base, [5, 6, 7, 8], 4, ())
    assert len({chain(0)[1], chain(3)[1], chain(4)[1], chain(7)[1], chain(8)[1]}) == 5


def test_a_page_is_named_by_everything_before_it():
    """The same tokens after another beginning are another page."""
    root = root_hash("model", b"")

    def second(*tokens):
        return page_hash(page_hash(root, tokens, 0, ()), [3, 4], 2, ())

    assert second(1, 2) != second(9, 2)
