"""Chat templates with tools, variables and continued messages mean what they mean to Transformers.

The templates are written here in the manner of the families that they are named after.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import render_jinja_template

from loraplex.engine.templates import TemplateError, TemplateOptions, compile_template, render
from loraplex.engine.text import TextCodec
from loraplex.engine.untrusted_templates import ADDED_CHARS, UntrustedTemplates

pytestmark = pytest.mark.anyio

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{%- else %}{{- 'Help.' }}{%- endif %}
    {{- "\\n\\n# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\nAnswer with <tool_call></tool_call>.<|im_end|>\\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>assistant' }}
        {%- if message.reasoning_content %}{{- '\\n<think>' + message.reasoning_content + '</think>' }}{%- endif %}
        {%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""

LLAMA = """\
{{- bos_token }}
{%- if not tools_in_user_message is defined %}{%- set tools_in_user_message = true %}{%- endif %}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Today: " + date_string + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {%- if message.role == "user" and loop.index0 == 1 and tools is not none and tools_in_user_message %}
            {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
        {%- endif %}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + tool_call.name + '", "parameters": ' }}
        {{- tool_call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping %}{{- message.content | tojson }}{%- else %}{{- message.content }}{%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

MISTRAL = """\
{%- set ns = namespace(last=0) %}
{%- for message in messages %}{%- if message.role == "user" %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == "user" %}
        {%- if tools is not none and loop.index0 == ns.last %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.function.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}
                    {%- else %}{{- '"' + key + '": ' + val | tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}{%- if not loop.last %}{{- ", " }}{%- endif %}
            {%- endfor %}
            {{- "][/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {{- "[INST] " + message.content + "[/INST]" }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.id | length != 9 %}{{- raise_exception("ids of calls have 9 characters") }}{%- endif %}
            {{- (tool_call.function | tojson)[:-1] + ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message.role == "assistant" %}
        {{- " " + message.content | trim + eos_token }}
    {%- elif message.role == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content | string + ', "call_id": "' + message.tool_call_id + '"}' }}
        {{- "[/TOOL_RESULTS]" }}
    {%- endif %}
{%- endfor %}
"""

TEMPLATES = {"qwen": QWEN, "llama": LLAMA, "mistral": MISTRAL}

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "description": "<b>Größe</b>"}}}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "description": "It's", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}},
]
CALL = {"id": "abcdef123", "type": "function", "function": {"name": "weather", "arguments": {"n": 10**25, "c": "ö"}}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüße"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "4", "tool_call_id": "abcdef123", "name": "weather"},
    {"role": "assistant", "content": "It is 4 degrees and ", "reasoning_content": "Hm."},
]

OPTIONS = [
    TemplateOptions(),
    TemplateOptions(tools=TOOLS),
    TemplateOptions(
        tools=TOOLS, variables={"enable_thinking": False, "date_string": "1", "tools_in_user_message": False}
    ),
    TemplateOptions(tools=TOOLS, add_generation_prompt=False),
    TemplateOptions(add_generation_prompt=False, continue_final_message=True),
]


@pytest.fixture
async def templates() -> AsyncIterator[UntrustedTemplates]:
    running = UntrustedTemplates(cpu_seconds=1)
    yield running
    await running.close()


@pytest.mark.parametrize("family", TEMPLATES)
async def test_tools_and_options_mean_what_they_mean_to_transformers(templates, family):
    """In the base's place and in the strangers', for each family and each way to ask."""
    template = TEMPLATES[family]
    for options in OPTIONS:
        [expected], _ = render_jinja_template(
            [MESSAGES],
            tools=options.tools,
            chat_template=template,
            add_generation_prompt=options.add_generation_prompt,
            continue_final_message=options.continue_final_message,
            **TOKENS,
            **options.variables,
        )

        assert render(compile_template(template), MESSAGES, TOKENS, options) == expected
        assert await templates.render("a", template, MESSAGES, TOKENS, options) == expected


@pytest.mark.parametrize("content", ["It is", "It is ", "  It is \n", "<b>"])
@pytest.mark.parametrize("template", [QWEN, "{% for m in messages %}{{ m.content | trim }}{{ eos_token }}{% endfor %}"])
def test_a_continued_message_ends_where_it_ends(content, template):
    """As Transformers cuts it, whether the template trims or not."""
    messages = [MESSAGES[1], {"role": "assistant", "content": content}]
    [expected], _ = render_jinja_template(
        [messages], chat_template=template, continue_final_message=True, add_generation_prompt=False, **TOKENS
    )
    options = TemplateOptions(add_generation_prompt=False, continue_final_message=True)

    assert render(compile_template(template), messages, TOKENS, options) == expected


def test_a_message_that_the_template_drops_cannot_be_continued():
    """And the reason says so."""
    options = TemplateOptions(add_generation_prompt=False, continue_final_message=True)
    with pytest.raises(TemplateError, match="cannot be continued"):
        render(compile_template("{{ messages[0].content }}"), MESSAGES, TOKENS, options)


async def test_tools_have_room_in_a_stranger_s_prompt(templates):
    """Indented they are longer than they were sent; what is longer by far is refused."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {str(n): [[n]] for n in range(9999)}}}]
    options = TemplateOptions(tools=tools)

    written = await templates.render("a", "{{ tools | tojson(indent=4) }}", MESSAGES, TOKENS, options)
    with pytest.raises(TemplateError, match="more than"):
        await templates.render("a", "{% for i in range(99) %}{{ tools }}{% endfor %}", MESSAGES, TOKENS, options)

    assert json.loads(written) == tools
    assert len(written) > ADDED_CHARS


@pytest.mark.parametrize("place", ["tokenizer_config.json", "additional_chat_templates"])
def test_a_template_for_tools_is_taken_where_there_are_tools(tiny_model_dir: Path, tmp_path: Path, place: str):
    """One of several templates by its name, wherever Transformers finds it."""
    (tmp_path / "tokenizer.json").write_bytes((tiny_model_dir / "tokenizer.json").read_bytes())
    config = json.loads((tiny_model_dir / "tokenizer_config.json").read_text())
    named = {"default": "plain", "tool_use": "{{ tools | length }} tools"}
    del config["chat_template"]
    if place == "tokenizer_config.json":
        config["chat_template"] = [{"name": name, "template": template} for name, template in named.items()]
    else:
        (tmp_path / "chat_template.jinja").write_text(named["default"])
        (tmp_path / place).mkdir()
        (tmp_path / place / "tool_use.jinja").write_text(named["tool_use"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    codec, oracle = TextCodec(tmp_path), AutoTokenizer.from_pretrained(tmp_path)

    for options in (TemplateOptions(), TemplateOptions(tools=TOOLS)):
        expected = oracle.apply_chat_template(MESSAGES, tools=options.tools, return_dict=False)
        assert codec.render_chat(MESSAGES, options) == expected


def test_special_tokens_are_told_where_they_are_looked_for(tiny_model_dir: Path):
    """A marker that is a special token has its text, other special tokens have none; nothing else changes."""
    codec = TextCodec(tiny_model_dir)
    ids = codec.encode("<|im_start|>Grüße<|im_end|> 👩‍🚀<|im_start|>")
    told, plain = codec.detokenizer(markers=["<|im_start|>", "ü", "no token"]), codec.detokenizer()

    assert "".join(told.push([i]) for i in ids) + told.flush() == "<|im_start|>Grüße 👩‍🚀<|im_start|>"
    assert plain.push(ids) + plain.flush() == "Grüße 👩‍🚀"
    assert codec.end_of(ids).endswith("<|im_start|>")
