"""Values that stand at the edge of something: numbers, texts, schemas, grammars, templates, names; by field, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TEXTS = (
    "", " ", "a", "hi", "0", "-1", "null", "é", "Straße", "日本", "👩‍👩‍👧", "e\u0301", "\u202eabc", "\ufeffx", "\u2028",
    "\x00", "a\x00b", "\x1b[0m", "\r\n", "\ud800", "\udfff\ud800", "\U0010ffff", "ﬁ", "ı", "..", "../../etc/passwd",
    "%00", "%2e%2e", "a/b", "a b", "'; DROP TABLE t; --", "{{ 7*7 }}", "<script>", "x" * 64, "x" * 300, "x" * 5000,
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 7, 258, 259, 287, 288, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1,
    2**64, 10**30, 10**400, 0.0, -0.0, 0.5, 1e-320, 1e308, -1e308,
)  # fmt: skip
NO_JSON = (float("nan"), float("inf"), float("-inf"))
SCHEMAS = (
    {}, {"type": "object"}, {"type": "string"}, {"type": "array", "items": {"type": "integer"}, "maxItems": 2},
    {"type": "nonsense"}, {"type": ["string", "null"]}, {"enum": []}, {"enum": [1, "a", None]}, {"const": "\x00"},
    {"const": "\ud800"}, {"$ref": "#"}, {"$ref": "#/$defs/x"}, {"$ref": "http://example.com/s.json"}, {"not": {}},
    {"$defs": {"x": {"$ref": "#/$defs/x"}}, "$ref": "#/$defs/x"}, {"type": "string", "pattern": "("},
    {"type": "string", "pattern": "(a+)+$"}, {"type": "string", "pattern": "^(?=x).*$"}, {"type": "integer",
    "minimum": 5, "maximum": 1},
    {"type": "string", "minLength": 10**9}, {"type": "array", "minItems": 10**6}, {"type": "number", "multipleOf": 0},
    {"properties": {"\x00": {}}, "required": ["\x00"]}, {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"anyOf": []}, {"oneOf": [{}, {}]}, {"patternProperties": {"[": {}}}, {"type": "string", "format": "nonsense"},
    {"x-guidance": {"lenient": "maybe"}}, {"additionalProperties": 7}, {"type": "object", "properties": []},
    {"type": "integer", "maximum": 1e308}, {"type": "number", "exclusiveMinimum": True}, {"$id": "\x00",
    "type": "null"},
)  # fmt: skip
REGEXES = (
    "a", "[a-z]{1,3}", "(", "[", "a{1000000}", "(a*)*b", "(?=a)", "\\", "\x00", "\ud800", "^$", "",
    "[^\\x00-\\U0010ffff]",
    "(?P<n>a)(?P=n)", "\\p{Greek}", "\\b", ".*" * 50, "(((((((((((a?){9}){9}){9}){9}){9}){9}){9}){9}){9}){9})", "|",
)  # fmt: skip
GRAMMARS = (
    'start: "a"', "start: start", "start:", "", "root ::= \"a\"", 'start: "a" start | "b"', "start: /(/", "start: x",
    "%llguidance {", '%llguidance {"no": 1}\nstart: "a"', 'start: %json {"type": "object"}', "start: %json {",
    "start: \x00",
    'start: "\ud800"', "start: <|im_end|>", "start: <nonsense>", 'start: ("a"){1000000}', "%ignore /./\nstart: /a/",
    "%import x.y",
    'start: a\na: b\nb: a', 'start: @x', 'start: "' + "a" * 3000 + '"', "start[lazy]: /.*/",
    "start[max_tokens=0]: /a*/",
    "start[temperature=9e99]: /a*/", "start: [1-10000]", "start: <[1]> <[99999]>", 'start[capture]: "x"',
    "// only a comment",
)  # fmt: skip
TEMPLATES = (
    "{{ messages[0].content }}", "{% for m in messages %}{{ m.content }}{% endfor %}", "{{", "{% raw %}", "", " ",
    "\ud800",
    "{% for i in range(10**9) %}x{% endfor %}", "{{ ''.__class__.__mro__ }}", "{{ raise_exception('no') }}",
    "{{ 1/0 }}",
    "{{ messages }}", "{% include 'x' %}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ 'x' * 10**8 }}",
    "{{ x.y.z }}",
    "{% set ns = namespace(a=1) %}{{ ns.a }}{{ messages[-1].content }}", "{{ lipsum }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ messages[0].content | tojson }}", "{{ strftime_now('%Y') }}{{ messages[0].content }}",
    "{{ '\\ud800' }}{{ messages[0].content }}",
)  # fmt: skip
NAMES = (
    "tickets",
    "short",
    "nobody",
    "tickets.",
    "TICKETS",
    "a" * 63,
    "a" * 64,
    "-a",
    ".",
    "..",
    "a/b",
    "tïckets",
    "tickets\n",
)
MODELS = (
    "tiny", "tiny", "tickets", "acme/tickets", "acme/tickets@1", "tickets@prod", "tickets@999999999", "tickets@0",
    "tickets@9999999999",
    "globex/tickets", "tiny:tickets", "tiny:", "tickets*0.5+short*-0.5", "tickets*0+tickets*0", "tickets*16",
    "tickets*17", "+", "*", "@", "/",
    "tickets*1e5", "tickets+" * 9 + "tickets", "tiny+tickets", "tickets+tickets", "tickets+" * 2000, "a@b@c", "//",
    "tickets@", "tickets*",
)  # fmt: skip
MESSAGES = (
    [{"role": "user", "content": "hi"}], [{"role": "system", "content": ""}, {"role": "user", "content": "hi"}],
    [{"role": "user", "content": ""}], [{"role": "user", "content": "\x00\ud800"}], [{"role": "assistant",
    "content": "a"}],
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "sure"}], [{"role": "user",
    "content": "<|im_end|>" * 3}],
    [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "\ud83d"}]}],
    [{"role": "user", "content": "\ude00"}],
)  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": schema}} for schema in SCHEMAS]

TOKEN_IDS = (0, 1, 2, 3, 258, 259, 287, 288, 2**31 - 1)
ODD: dict[str, Sequence[Any]] = {
    "model": MODELS, "adapter_id": MODELS, "lora_path": (*MODELS, "a", "/a", "loras/a\x00", "x" * 4096, "/" * 4096,
    "/proc/self/mem"),
    "lora_name": (*NAMES, "acme/lora", "nobody/lora", "loaded"), "adapter": NAMES, "name": (*NAMES, *TEXTS),
    "slug": NAMES, "tenant": (*NAMES, "victim", None),
    "messages": MESSAGES, "prompt": ("hi", "", [5], [[5], [6]], ["a", "b"], [""], [288], [2**31 - 1], [0, 1, 2],
    ["\ud800"], "\x00", [5] * 200, ["a"] * 9),
    "input": ("hi", "", [5], [[5], [6]], ["a", "b"], [""], [288], [0], [5] * 200, ["a"] * 40, "\ud800"),
    "tokens": ([], [0], [5, 6], [258], [259], [287], [288], [2**31 - 1], list(range(259))),
    "max_tokens": (1, 2, 3, 64, 65, 1 << 24, (1 << 24) + 1, 0), "max_completion_tokens": (1, 2, 3, 64, 1 << 24, 0),
    "min_tokens": (0, 1, 5, 64, 1 << 24),
    "n": (1, 2, 3, 4, 5, 1 << 20), "best_of": (1, 2, 4, 5), "seed": (0, -1, 2**63 - 1, -(2**63), 2**63, 2**31),
    "top_k": (-1, 0, 1, 288, 2**31 - 1),
    "temperature": (0, 2, 1e-320, 1e-10, 1.9999999), "top_p": (1, 1e-320, 1e-10, 0.5), "min_p": (0, 1, 1e-320),
    "repetition_penalty": (1, 1e-320, 100, 1e-10),
    "stop": ("", "\n", "\x00", "\ud800", ["a", "b"], ["e"] * 32, [], "x" * 256, "<|im_end|>", ["", "a"], "é"),
    "stop_token_ids": ([], [2], [288], [2**31 - 1], [5] * 64), "allowed_token_ids": ([], [5], [288], [2], [0, 1, 2],
    [2**31 - 1], list(range(288))),
    "bad_words": ([], ["a"], [""], ["\x00"], ["\ud800"], [" "], ["<|im_end|>"], ["x" * 256], ["a"] * 128),
    "logit_bias": ({}, {"5": 100}, {"5": -100}, {"288": 1}, {"05": 1}, {"+5": 1}, {" 5": 1}, {"5.0": 1}, {"-1": 1},
    {"1e1": 1}, {"": 1}, {"٥": 1},
                   {"5": 1e308}, {"5": -1e308}, {str(i): -1e308 for i in range(288)}, {"99999999999999999999": 1},
                   {"5_0": 1}),
    "timeout": (1e-300, 0.001, 1, 86400), "truncate_prompt_tokens": (-1, 1, 2, 64, 1 << 24), "priority": (0, 1000),
    "prompt_logprobs": (0, 1, 20), "top_logprobs": (0, 1, 20),
    "response_format": ({"type": "text"}, {"type": "json_object"}, *({"type": "json_schema",
    "json_schema": {"name": "s", "schema": s, "strict": i % 2 == 0}} for i, s in enumerate(SCHEMAS))),
    "structured_outputs": (*({"json": s} for s in SCHEMAS), *({"regex": r} for r in REGEXES),
    *({"grammar": g} for g in GRAMMARS),
                           {"json": "{"}, {"json": "{}"}, {"choice": ["a", ""]}, {"choice": [""]},
                           {"choice": ["\x00"]}, {"choice": ["\ud800"]}, {"choice": ["\n\"\\"]},
                           {"choice": ["</s>", "<|im_end|>"]}, {"json_object": True}, {"json_object": False}),
    "schema": SCHEMAS, "parameters": SCHEMAS, "json": SCHEMAS, "regex": REGEXES, "grammar": GRAMMARS,
    "choice": (["a"], [""], ["\x00", "b"], ["\ud800"]),
    "tools": ([], *([tool] for tool in TOOLS), TOOLS[:3]), "tool_choice": ("none", "auto", "required",
    {"type": "function", "function": {"name": "f"}}, {"type": "function", "function": {"name": "g"}}),
    "chat_template_kwargs": ({}, {"enable_thinking": True}, {"thinking": 1e308}, {"date_string": "\ud800"},
    {"date_string": "\x00"}, {"messages": []}, {"reasoning_effort": None}, {"thinking_budget": 2**63}),
    "chat_template": TEMPLATES, "system_prompt": TEXTS, "user": TEXTS, "cache_salt": TEXTS, "description": TEXTS,
    "reason": TEXTS,
    "metadata": ({}, {"a": "b"}, {"": ""}, {"\x00": "\x00"}, {"\ud800": "\ud800"}, {str(i): "" for i in range(17)},
    {"k" * 64: "v" * 512}, {"é" * 64: "👩" * 512}),
    "expires_at": ("2999-01-01T00:00:00Z", "2000-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59",
    "9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00+23:59",
                   "2030-02-29T00:00:00Z", "2030-01-01", "2030-01-01T00:00:00", "2030-01-01T24:00:00Z",
                   "2030-06-30T23:59:60Z", "", "now", 1, None),
    "source": ("hf://acme/x", "hf://acme/x@main", "hf://acme/x@" + "0" * 40, "s3://models/x", "hf://", "hf://acme/..",
    "http://x", "hf://acme/x@\x00", "s3://", "s3://models/../x", "x", "hf://acme/\ud800", "hf://other/x"),
    "endpoint": ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", ""),
    "version": (1, 2, 999_999_999, 1_000_000_000, 0), "split": ({"1": 1}, {"1": 1, "2": 1}, {"1": 1_000_000},
    {"999999999": 1}, {}, {"01": 1}, {"1": 0}, {"x": 1}),
    "to": (1, 2, 999_999_999, None), "seconds": (1, 3600, 604800, 604801, 2592000), "size_bytes": (1, 10, 1 << 50,
    10**30), "sha256": ("0" * 64, "f" * 64, "F" * 64, "0" * 64 + "\n"),
    "dimensions": (64, 1, 63, 2**63), "scopes": (["inference"], ["adapters"], ["admin"], ["inference", "inference"],
    ["inference", "adapters", "admin"], []),
    "arguments": ("{}", "", "[]", "{", "\x00", '{"a": 1e999}', "[" * 500, '{"a": NaN}', '"\\ud800"'), "files": ([],),
    "context_limit": (1, 2, 64, 65, 1 << 24),
}  # fmt: skip
"""By the names of fields: values inside of their types, or just outside, that the code behind has to withstand."""

USUAL: dict[str, Sequence[Any]] = {
    "messages": MESSAGES[:2], "prompt": ("hi", [5, 6], ["a", [7]]), "input": ("hi", [5, 6], ["a", "b"]),
    "tokens": ([5, 6], [0]), "temperature": (0, 1), "max_tokens": (1, 3), "max_completion_tokens": (1, 3),
    "max_output_tokens": (1, 3), "n": (1, 2), "best_of": (2,), "stop_token_ids": ([5],), "allowed_token_ids": ([5, 6,
    7],), "logit_bias": ({"5": 10, "6": -100},), "min_tokens": (1,), "timeout": (10,),
    "response_format": ({"type": "json_object"},), "structured_outputs": ({"regex": "[a-z]{1,3}"}, {"choice": ["a",
    "b"]}), "tools": (TOOLS[1:2],), "tool_choice": ("auto", "none"), "schema": SCHEMAS[1:3],
    "parameters": SCHEMAS[1:2], "chat_template_kwargs": ({"enable_thinking": True},), "truncate_prompt_tokens": (-1,
    5), "dimensions": (64,), "completion_window": ("24h",), "endpoint": ("/v1/completions",),
    "metadata": ({"a": "b"},), "expires_at": ("2999-01-01T00:00:00Z",), "scopes": (["inference"],), "seconds": (3600,
    ), "adapters": ([{"model": "tickets", "weight": 0.5}],), "chat_template": TEMPLATES[:2],
    "description": ("d",), "reason": ("r",), "name": ("f",), "slug": ("victim",), "tenant": ("victim",), "to": (1,),
    "split": ({"1": 1},), "context_limit": (32,), "stream": (True, False), "lora_path": ("tickets",),
    "adapter_id": ("tickets",), "base_model": (None, "tiny"),
}  # fmt: skip
"""By the names of fields: values that mean nothing special, where chance would rarely find one that is accepted."""

SMALL = {"max_tokens": 3, "max_completion_tokens": 3, "max_output_tokens": 3}
"""What a request gets most of the time, so that cases are quick."""
