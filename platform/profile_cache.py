"""Serving profiles that are in use, by their digests. What a digest names never changes, so nothing here gets old."""

from __future__ import annotations

from collections import OrderedDict

from loraplex.adapters.errors import AdapterNotFound
from loraplex.adapters.profile import DEFAULT_PROFILE, ServingProfile
from loraplex.adapters.profile_store import ProfileStore
from loraplex.adapters.registry import VersionInfo

MAX_CHARS = 64 << 20
"""Of all profiles together: more than ten thousand with templates of usual length."""


class ProfileCache:
    """Least recently used profiles leave first."""

    def __init__(self, store: ProfileStore, max_chars: int = MAX_CHARS) -> None:
        self._store = store
        self._max_chars = max_chars
        self._chars = 0
        self._profiles: OrderedDict[str, ServingProfile] = OrderedDict()

    async def of(self, version: VersionInfo | None) -> ServingProfile:
        """The profile of a version, or of the base. Where it changed since the version was looked up, the new one."""
        if version is None or version.profile_digest is None:
            return DEFAULT_PROFILE
        known = self._profiles.get(version.profile_digest)
        if known is not None:
            self._profiles.move_to_end(version.profile_digest)
            return known
        try:
            profile = (await self._store.get(version.tenant_id, version.name, version.number)).profile
        except AdapterNotFound:  # deleted meanwhile; the request keeps its weights
            return DEFAULT_PROFILE
        return DEFAULT_PROFILE if profile is None else self._keep(profile)

    def _keep(self, profile: ServingProfile) -> ServingProfile:
        digest = profile.digest
        if digest not in self._profiles:
            self._profiles[digest] = profile
            self._chars += profile.chars
        while self._chars > self._max_chars:
            self._chars -= self._profiles.popitem(last=False)[1].chars
        return profile
