"""OpenAI's Python client: conversations, plain completions, and how they are sampled."""

from __future__ import annotations

from openai_asking import GREEDY, MESSAGES, STORY, client, text_of
from report import ADAPTER, DESK, DESKS, TICKET, feature, holds, same


def chat(model: str) -> None:
    with feature("chat", model):
        completion = client.chat.completions.create(model=model, **GREEDY)
        usage = completion.usage
        same(usage.total_tokens, usage.prompt_tokens + usage.completion_tokens)
        holds(completion.choices[0].finish_reason in ("stop", "length"), completion)
        holds(completion.choices[0].message.content, completion)
        if model == ADAPTER:
            same(completion.choices[0].message.content.strip(), DESK)
    with feature("chat, stream with usage", model):
        options = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(client.chat.completions.create(model=model, **GREEDY, **options))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        same(text, text_of(model))
        same([chunk.usage for chunk in chunks[:-1]], [None] * (len(chunks) - 1))
        holds(chunks[-1].usage.completion_tokens > 0, chunks[-1])
    with feature("chat, stream helper", model):
        # the helper raises where an answer ends at its limit
        with client.chat.completions.stream(model=model, **GREEDY, stop=[" "]) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_completion()
        same(final.choices[0].message.content, text_of(model).split(" ")[0])
        holds("content.delta" in kinds, kinds)
        same(kinds[-1], "content.done")
    with feature("chat, answer sent back as a message", model):
        first = client.chat.completions.create(model=model, **GREEDY)
        thread = [*MESSAGES, first.choices[0].message, {"role": "user", "content": "And now?"}]
        second = client.chat.completions.create(model=model, messages=thread, max_tokens=4)
        longer = second.usage.prompt_tokens - first.usage.prompt_tokens
        holds(longer > first.usage.completion_tokens and second.choices[0].message.content, second)
    with feature("chat, developer message and text parts", model):
        parts = [{"type": "text", "text": TICKET[:9]}, {"type": "text", "text": TICKET[9:]}]
        new = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}]
        old = [{"role": "system", "content": "Be brief."}, *MESSAGES]
        asked = client.chat.completions.create(model=model, messages=new, max_completion_tokens=6, temperature=0)
        expected = client.chat.completions.create(model=model, messages=old, max_tokens=6, temperature=0)
        same(asked.choices[0].message.content, expected.choices[0].message.content)


def sampling(model: str) -> None:
    with feature("logit_bias and penalties", model):
        (token,) = client.completions.create(model=model, prompt=[40], max_tokens=0, echo=True).choices
        forced = client.completions.create(model=model, prompt="So", max_tokens=4, logit_bias={"40": 100})
        same(forced.choices[0].text, token.text * 4)
        plain = STORY | {"prompt": "one two one two one two one", "max_tokens": 24}
        penalised = client.completions.create(model=model, **plain, frequency_penalty=2, presence_penalty=2)
        holds(penalised.choices[0].text != client.completions.create(model=model, **plain).choices[0].text, penalised)
    with feature("n, with a seed", model):
        options = STORY | {"model": model, "temperature": 1.5, "seed": 7}
        choices = client.completions.create(**options, n=3).choices
        same([choice.index for choice in choices], [0, 1, 2])
        same(len({choice.text for choice in choices}), 3)
        same(client.completions.create(**options).choices[0].text, choices[0].text)
    with feature("chat logprobs, whole and streamed", model):
        options = GREEDY | {"model": model, "logprobs": True, "top_logprobs": 3}
        choice = client.chat.completions.create(**options).choices[0]
        scores = choice.logprobs.content
        same([(len(item.top_logprobs), item.top_logprobs[0].token) for item in scores], [(3, i.token) for i in scores])
        text = b"".join(bytes(item.bytes) for item in scores).decode()
        holds(text.startswith(choice.message.content), text)
        chunks = client.chat.completions.create(**options, stream=True)
        told = [item for chunk in chunks if chunk.choices[0].logprobs for item in chunk.choices[0].logprobs.content]
        same([item.token for item in told], [item.token for item in scores])
        holds(all(abs(a.logprob - b.logprob) < 1e-3 for a, b in zip(told, scores, strict=True)), told)
    with feature("vLLM's fields in extra_body", model):
        fields = {"top_k": 1, "ignore_eos": True, "min_tokens": 12, "structured_outputs": {"choice": list(DESKS)}}
        asked = GREEDY | {"model": model, "temperature": 1, "max_tokens": 12}
        holds(client.chat.completions.create(**asked, extra_body={"structured_outputs": {"choice": list(DESKS)}})
              .choices[0].message.content in DESKS, "a desk")  # fmt: skip
        del fields["structured_outputs"]
        same(client.chat.completions.create(**asked, extra_body=fields).usage.completion_tokens, 12)
        options = {"include_usage": True, "continuous_usage_stats": True}
        chunks = list(client.completions.create(model=model, **STORY, stream=True, stream_options=options))
        counts = [chunk.usage.completion_tokens for chunk in chunks]
        same((counts, counts[-1]), (sorted(counts), STORY["max_tokens"]))


def completions(model: str) -> None:
    with feature("completions, whole and streamed", model):
        whole = client.completions.create(model=model, **STORY)
        stream = client.completions.create(model=model, **STORY, stream=True)
        same("".join(chunk.choices[0].text for chunk in stream), whole.choices[0].text)
        same(whole.usage.completion_tokens, STORY["max_tokens"])
    with feature("completions, several prompts", model):
        prompts = ["One", "Two"]
        choices = client.completions.create(model=model, **STORY | {"prompt": prompts}, n=2).choices
        alone = [client.completions.create(model=model, **STORY | {"prompt": one}).choices[0].text for one in prompts]
        same([choice.index for choice in choices], [0, 1, 2, 3])
        same([choice.text for choice in choices], [alone[0]] * 2 + [alone[1]] * 2)
    with feature("completions, echo and logprobs", model):
        choice = client.completions.create(model=model, **STORY | {"max_tokens": 1}, echo=True, logprobs=2).choices[0]
        logprobs = choice.logprobs
        same((logprobs.token_logprobs[0], logprobs.text_offset[0]), (None, 0))
        same("".join(logprobs.tokens), choice.text)
        holds(choice.text.startswith(STORY["prompt"]), choice.text)
        holds(all(value <= 0 for value in logprobs.token_logprobs[1:]), logprobs)
