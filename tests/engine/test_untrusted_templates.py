"""Whatever a stranger's chat template does, it ends, it says why, and nobody else waits for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import msgspec
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from loraplex.engine import bounded_processes
from loraplex.engine.generation import EngineUnavailable
from loraplex.engine.template_process import Compiled
from loraplex.engine.templates import TemplateError, TokenizerConfig, compile_template, render
from loraplex.engine.untrusted_templates import UntrustedTemplates

pytestmark = pytest.mark.anyio

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße 👩‍🚀"}]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
GOOD = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'] | trim }}{{ eos_token }}{% endfor %}"
WRITTEN = "<s>[system] Be brief.</s>[user] Grüße 👩‍🚀</s>"
FOR_EVER = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4

BOUNDED, FAILS, INVALID = "more than", "fails on", "not valid"
HOSTILE = {
    "nested ranges": (FOR_EVER, BOUNDED),
    "macros that call themselves twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
        BOUNDED,
    ),
    "lipsum": ("{{ lipsum(n=10**8) }}", BOUNDED),
    "cycler": ("{% set c = cycler(1) %}" + FOR_EVER.replace("%}{% end", "%}{% set x = c.next() %}{% end", 1), BOUNDED),
    "one long operation": ("{{ 7 ** (7 ** 9) }}", BOUNDED),
    "string multiplication": ("{{ 'x' * 10**9 }}", BOUNDED),
    "center": ("{{ 'x' | center(10**9) }}", BOUNDED),
    "join": ("{{ range(99999) | join('x' * 100000) }}", BOUNDED),
    "format": ("{{ '%1000000000d' % 1 }}", BOUNDED),
    "replace": ("{{ ('x' * 100000) | replace('x', 'y' * 100000) }}", BOUNDED),
    "indent": ("{{ ('\\n' * 10**5) | indent(10**5, blank=true) }}", BOUNDED),
    "doubling": (
        "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        BOUNDED,
    ),
    "doubling a list": (
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
        BOUNDED,
    ),
    "much text": ("{% for a in range(300) %}{{ 'x' * 3000 }}{% endfor %}", BOUNDED),
    "a macro that calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", FAILS),
    "a loop that calls itself": ("{% for i in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}", FAILS),
    "Python's internals": ("{{ 'x'.__class__.__mro__ }}", FAILS),
    "internals by a namespace": ("{{ namespace(__class__=1) }}", FAILS),
    "a file": ("{% include '/etc/passwd' %}", FAILS),
    "a module that Python would load": ("{{ 'x'.encode('idna') }}", FAILS),
    "half a character": ("{{ '\\ud800' }}", "not Unicode"),
    "nesting": ("{{" + "(" * 9999 + "1" + ")" * 9999 + "}}", INVALID),
    "more nesting": ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, INVALID),
    "no template": ("{% for %}", INVALID),
}


@pytest.fixture
async def templates() -> AsyncIterator[UntrustedTemplates]:
    running = UntrustedTemplates(cpu_seconds=0.25)
    yield running
    await running.close()


async def test_hostile_templates_end_and_say_why(templates):
    """By time, memory, length or failure; no message names a file of the server, and the next template is served."""

    async def refusal(name: str, template: str) -> str:
        with pytest.raises(TemplateError) as refused:
            await templates.render(name, template, MESSAGES, TOKENS)
        assert not refused.value.refused, name
        return str(refused.value)

    said = await asyncio.gather(*(refusal(name, template) for name, (template, _) in HOSTILE.items()))

    for (name, (_, reason)), words in zip(HOSTILE.items(), said, strict=True):
        assert reason in words, (name, words)
        assert "python3" not in words, (name, words)
    assert await templates.render("good", GOOD, MESSAGES, TOKENS) == WRITTEN


async def test_nobody_waits_for_another_owners_template():
    """However much one has under way, it holds one process; whoever stops waiting frees it."""
    templates = UntrustedTemplates(processes=2, cpu_seconds=60)
    hanging = [asyncio.create_task(templates.render("mallory", FOR_EVER, MESSAGES, TOKENS)) for _ in range(3)]

    assert await templates.render("alice", GOOD, MESSAGES, TOKENS) == WRITTEN
    assert not any(task.done() for task in hanging)
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
    assert await templates.render("mallory", GOOD, MESSAGES, TOKENS) == WRITTEN
    await templates.close()


async def test_an_owner_may_have_so_many_waiting(templates, monkeypatch):
    """The next one is told to try again; other owners are not."""
    monkeypatch.setattr(bounded_processes, "MAX_WAITING", 2)
    asked = [templates.render(owner, GOOD, MESSAGES, TOKENS) for owner in ("a", "a", "a", "b")]

    *served, turned_away, other = await asyncio.gather(*asked, return_exceptions=True)

    assert [*served, other] == [WRITTEN] * 3
    assert isinstance(turned_away, EngineUnavailable)


async def test_a_process_that_dies_or_hangs_is_replaced(templates, monkeypatch):
    """One that died while it was idle is not asked; one that is not given its time is ended."""
    await templates.render("a", GOOD, MESSAGES, TOKENS)
    idle = templates._processes._idle[0].process
    idle.kill()
    await idle.wait()
    assert await templates.render("a", GOOD, MESSAGES, TOKENS) == WRITTEN
    monkeypatch.setattr(bounded_processes, "WALL_SECONDS", 0.0)
    with pytest.raises(EngineUnavailable, match="no time for a chat template"):
        await templates.render("a", GOOD, MESSAGES, TOKENS)
    monkeypatch.undo()
    assert await templates.render("a", GOOD, MESSAGES, TOKENS) == WRITTEN


@pytest.mark.parametrize(
    "template",
    [
        GOOD,
        "{%- if tools is not none %}tools{% endif %}{% if documents %}documents{% endif %}{{ messages[0] | tojson }}",
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{% generation %}"
        "{{ m.content }}{% endgeneration %}\n{% endfor %}{% if add_generation_prompt %}>{% endif %}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    ],
)
async def test_a_template_means_what_it_means_to_transformers(templates, template):
    """Its tags, variables and filters, in the base's place and in the strangers'."""
    [expected], _ = render_jinja_template([MESSAGES], chat_template=template, add_generation_prompt=True, **TOKENS)

    assert render(compile_template(template), MESSAGES, TOKENS) == expected
    assert await templates.render("a", template, MESSAGES, TOKENS) == expected


def test_compiled_templates_are_kept_by_their_length():
    """The least recently used leave first; one that is longer than all room is kept while it is used."""
    kept = Compiled(max_chars=2)
    a, b = kept.get("a"), kept.get("b")
    assert kept.get("a") is a
    kept.get("c")
    assert kept.get("a") is a
    assert kept.get("b") is not b
    assert kept.get("long") is kept.get("long")


async def test_a_template_may_say_no(templates):
    """raise_exception is told apart from a failure, in the template's own words."""
    with pytest.raises(TemplateError, match="no system here") as refused:
        await templates.render("a", "{{ raise_exception('no system here') }}", MESSAGES, TOKENS)
    assert refused.value.refused


@pytest.mark.parametrize(
    ("config", "template"),
    [
        ({}, None),
        ({"chat_template": None, "model_max_length": int(1e30)}, None),
        ({"chat_template": "x"}, "x"),
        ({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "x"}]}, "x"),
        ({"chat_template": [{"name": "tool_use", "template": "t"}]}, None),
    ],
)
def test_a_tokenizer_config_has_one_default_template(config, template):
    """Or none; whatever else stands in it is not looked at."""

    assert msgspec.json.decode(json.dumps(config), type=TokenizerConfig).default_template == template
