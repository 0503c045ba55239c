"""Of the server as a process: its database connections, its disk, what waits to be written, how late its event loop is.

Read at the scrape, but for the loop. Knows no request.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from loraplex import __version__
from loraplex.adapters.database import Database
from loraplex.platform.ledger.ledger import Ledger
from loraplex.platform.metrics import Metrics

LAG_INTERVAL_SECONDS = 0.5


class ServerMetrics(Collector):
    def __init__(self, database: Database, data_dir: Path) -> None:
        self._database = database
        self._data_dir = data_dir

    def register(self, registry: CollectorRegistry) -> None:
        """With those of the process, which Prometheus' own library reads."""
        registry.register(self)
        ProcessCollector(registry=registry)

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("loraplex_build", "Which Loraplex this is.", value={"version": __version__})
        pool = self._database.connections
        connections = GaugeMetricFamily(
            "loraplex_database_connections", "Connections to the database, by state.", labels=("state",)
        )
        connections.add_metric(("used",), pool.used)
        connections.add_metric(("idle",), pool.idle)
        yield connections
        yield GaugeMetricFamily("loraplex_database_connections_max", "Most there may be.", value=pool.most)
        yield CounterMetricFamily(
            "loraplex_database_commits", "Transactions committed that may have written.", value=self._database.commits
        )
        disk = shutil.disk_usage(self._data_dir)
        yield GaugeMetricFamily("loraplex_disk_free_bytes", "Of the data folder's file system.", value=disk.free)
        yield GaugeMetricFamily("loraplex_disk_bytes", "Size of the data folder's file system.", value=disk.total)


class LedgerMetrics(Collector):
    """Of usage that was counted: what the database has, and what waits for it."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        ledger = self._ledger
        yield CounterMetricFamily(
            "loraplex_ledger_records", "Requests written into the usage ledger.", value=ledger.records_written
        )
        yield GaugeMetricFamily(
            "loraplex_ledger_waiting_bytes", "Usage not in the database yet.", value=ledger.waiting_bytes
        )
        yield GaugeMetricFamily(
            "loraplex_ledger_waiting_seconds", "For how long the oldest of it waits.", value=ledger.waiting_seconds
        )


async def watch_event_loop(metrics: Metrics) -> None:
    """For ever: tell how late the loop is to do what is due."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_INTERVAL_SECONDS
        await asyncio.sleep(LAG_INTERVAL_SECONDS)
        metrics.loop_was_late(max(loop.time() - due, 0.0))
