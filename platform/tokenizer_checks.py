"""The tokenizer that an adapter brings among its files: what it has that the base's has not.

Knows the files' forms and the process that compares them. Knows no request and no row.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import replace
from filecmp import cmp
from pathlib import Path

import msgspec
from anyio import to_thread

from loraplex.adapters.blobs import TOKENIZER_FILE, Staging
from loraplex.adapters.errors import AdapterInvalid
from loraplex.adapters.tokenizer_file import REFUSED, TokenizerDifference, refused
from loraplex.adapters.untrusted_json import CheckFailed, CheckFailure
from loraplex.engine.bounded_processes import inherited_environment
from loraplex.engine.text import TextCodec

COMPARE_SECONDS = 60
FOLLOWED = ("bos_token", "eos_token", "unk_token")
"""Special tokens that change what is answered."""


class TokenizerChecks:
    """For one event loop. Compares one file at a time, as each takes a core and much memory."""

    def __init__(self, base: TextCodec) -> None:
        self._base = base
        self._comparing = asyncio.Lock()

    async def take(self, staging: Staging, special_tokens: Mapping[str, str]) -> TokenizerDifference | None:
        """The tokenizer among staged files, as far as it is not the base's; its file is removed. None: there is none.

        special_tokens: of the adapter, by name. Raises AdapterInvalid.
        """
        path = staging.path(TOKENIZER_FILE)
        if not path.exists():
            return None
        try:
            found = await self._difference(path)
            return await to_thread.run_sync(self._checked, found, special_tokens)
        except CheckFailed as error:
            raise AdapterInvalid([error.failure.as_dict()]) from error
        finally:
            path.unlink()

    async def _difference(self, path: Path) -> TokenizerDifference:
        if await to_thread.run_sync(cmp, path, self._base.tokenizer_path, False):
            return TokenizerDifference(self._base.size)
        async with self._comparing:
            return await _compared(path, self._base.tokenizer_path)

    def _checked(self, found: TokenizerDifference, special_tokens: Mapping[str, str]) -> TokenizerDifference:
        """With those special tokens that are others than the base's. Raises CheckFailed for ids that leave gaps."""
        codec = self._base.with_tokens(found.added, {})
        for token in found.added:
            if codec.token_id(token.content) != token.id:
                reason = f"its token {token.id} does not follow those of the base, or has the text of one of them"
                raise refused("tokenizer_unsupported", reason)
        changed = {
            name: special_tokens[name]
            for name in FOLLOWED
            if special_tokens.get(name, "") not in ("", self._base.special_tokens[name])
            and codec.token_id(special_tokens[name]) is not None
        }
        return replace(found, special_tokens=changed)


async def _compared(path: Path, base_path: Path) -> TokenizerDifference:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loraplex.adapters.tokenizer_file", path, base_path,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, env=inherited_environment(),
    )  # fmt: skip
    try:
        async with asyncio.timeout(COMPARE_SECONDS):
            output, _ = await process.communicate()
    except TimeoutError:
        output = b""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode == REFUSED:
        raise CheckFailed(msgspec.json.decode(output, type=CheckFailure))
    if process.returncode != 0:
        raise refused("tokenizer_too_large", "comparing it with the base's takes more time or memory than it may")
    return msgspec.json.decode(output, type=TokenizerDifference)
