"""What OpenAI's text endpoints have, and other servers' versions of them, and this server has not. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

UNSERVED: Mapping[str, tuple[Any, ...]] = {
    # field of OpenAI's, vLLM's or LoRAX's API -> the values that ask for nothing; any other is refused, by an endpoint
    # whose body does not have it
    "adapter_source": (None, "local"),
    "add_special_tokens": (None,),
    "api_token": (None,),
    "audio": (None,),
    "best_of": (None, 1),
    "chat_template": (None,),
    "echo": (None, False),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "metadata": (None, {}),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "prediction": (None,),
    "prompt_cache_key": (None,),
    "prompt_cache_retention": (None,),
    "reasoning_effort": (None, "none"),
    "safety_identifier": (None,),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "suffix": (None, ""),
    "top_logprobs": (None, 0),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}

UNSERVED_IN_MESSAGES: Mapping[str, tuple[Any, ...]] = {
    # an answer of these clients is sent back as a message with all its empty fields
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
}

INSTEAD: Mapping[str, str] = {
    "suffix": "Models are served that continue text, and know nothing of what comes after it: leave it out, or write "
    "prompt and suffix into 'prompt' with the fill-in-the-middle tokens of a model that has them.",
    "adapter_source": "Nothing is fetched from elsewhere for a request: publish the adapter here, then name it.",
    "api_token": "Your key goes in the header `Authorization: Bearer`, and no other is handed on.",
    "guided_choice": 'It is vLLM\'s old name: send `structured_outputs: {"choice": [...]}`.',
    "guided_grammar": 'It is vLLM\'s old name: send `structured_outputs: {"grammar": "..."}`.',
    "guided_json": 'It is vLLM\'s old name: send `structured_outputs: {"json": {...}}`, or `response_format`.',
    "guided_regex": 'It is vLLM\'s old name: send `structured_outputs: {"regex": "..."}`.',
}
"""What to do about an unserved field, where leaving it out is not all."""
