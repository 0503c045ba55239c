"""How text becomes tokens for a version: by the base's tokenizer, or by that with tokens of the version's own.

Knows files and text. A digest names its tokens too, so nothing here gets old.
"""

from __future__ import annotations

from collections import OrderedDict

from anyio import to_thread

from loraplex.adapters.blobs import BlobStore
from loraplex.adapters.registry import VersionInfo
from loraplex.engine.text import TextCodec

MAX_CODECS = 256
"""One with a thousand tokens takes about a megabyte."""


class TextCodecs:
    """Those of versions that were used last are kept."""

    def __init__(self, base: TextCodec, blobs: BlobStore) -> None:
        self._base = base
        self._blobs = blobs
        self._codecs: OrderedDict[str, TextCodec] = OrderedDict()

    async def of(self, version: VersionInfo | None) -> TextCodec:
        """That of a version, or of the base. Raises AdapterUnavailable when the version's files are damaged."""
        if version is None or version.vocab_size is None:
            return self._base
        if version.digest not in self._codecs:
            self._codecs[version.digest] = await to_thread.run_sync(self._load, version.digest)
        self._codecs.move_to_end(version.digest)
        if len(self._codecs) > MAX_CODECS:
            self._codecs.popitem(last=False)
        return self._codecs[version.digest]

    def _load(self, digest: str) -> TextCodec:
        spec = self._blobs.open(digest).spec
        return self._base.with_tokens(spec.added_tokens, spec.special_tokens)
