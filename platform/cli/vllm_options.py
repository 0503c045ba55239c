"""The options of vLLM's and SGLang's command lines that `loraplex serve` takes as they are, or answers with its own.

Knows click and words. Knows no setting's meaning.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import click

ELSEWHERE: Mapping[str, str] = {
    "--enable-lora": "adapters are always served; leave it out",
    "--lora-paths": "write --lora-modules NAME=PATH",
    "--max-loras": "there is no limit on adapters in a batch; --adapter-device-bytes bounds their memory",
    "--max-loras-per-batch": "there is no limit on adapters in a batch; --adapter-device-bytes bounds their memory",
    "--max-cpu-loras": "adapters in host memory are bounded by --adapter-host-bytes",
    "--max-loaded-loras": "adapters in host memory are bounded by --adapter-host-bytes",
    "--max-lora-rank": "write --max-adapter-rank; adapters take memory and work for their own rank",
    "--api-key": "make keys with: loraplex key create",
    "--gpu-memory-utilization": "write --memory-bytes, for adapters and the KV cache together",
    "--max-num-batched-tokens": "write --max-step-tokens",
    "--speculative-config": "write --speculative-tokens N for what the method ngram does; no draft model is served",
    "--speculative-algorithm": "write --speculative-tokens N for what NGRAM does; no draft model is served",
    "--speculative-num-draft-tokens": "write --speculative-tokens N",
}
"""What to type instead of an option that is not here."""


class ServeCommand(click.Command):
    """A command without arguments, whose repeatable options may have several values after them, as in argparse."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = [param for param in self.params if isinstance(param, click.Option) and param.multiple]
        try:
            return super().parse_args(ctx, repeat_lists(args, {name for option in options for name in option.opts}))
        except click.NoSuchOption as error:
            if remedy := ELSEWHERE.get(error.option_name):
                raise click.UsageError(f"{error.option_name} is not an option here: {remedy}.", ctx) from error
            raise


def repeat_lists(args: Sequence[str], lists: Collection[str]) -> list[str]:
    """`--list a b` as click reads it: `--list a --list b`."""
    repeated: list[str] = []
    option, has_value = "", False
    for word in args:
        if word.startswith("-"):
            name, equals, _ = word.partition("=")
            option, has_value = name if name in lists else "", bool(equals)
        elif option and has_value:
            repeated.append(option)
        else:
            has_value = True
        repeated.append(word)
    return repeated
