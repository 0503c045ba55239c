"""The story of `make lifecycle`, on the tests' server: of every answer under way while versions change."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from demo_server import Keys, Server
from lifecycle import LONG, NAME, tell

LONG_TOKENS = 400
"""More than in the example: the tests' model takes a few milliseconds for each."""


def test_every_answer_is_of_the_version_that_it_names_while_versions_change(site):
    """Pushed, canaried, promoted, rolled back, deleted: no request fails, none has an answer of another version. How
    many long answers outlive theirs is a matter of speed, and so for the command alone to judge."""
    server = Server(site.server.url, site.server.data_dir, site.server.process)
    folders = {1: site.loras / "a", 2: site.loras / "c"}
    long = [replace(question, max_tokens=LONG_TOKENS) for question in LONG]
    try:
        story = asyncio.run(tell(server, Keys(server), folders, long))
    finally:
        with site.server.http(site.acme) as client:
            client.delete(f"/api/v1/adapters/{NAME}")

    assert story.problems() == []
    assert story.traffic.phases == ["version 1", "canary", "promoted", "rolled back", "promoted again"]
    assert {record.user for record in story.traffic.records} >= {f"long-{number}" for number in range(len(long))}
