"""A service that watches videos, and what its worker counts."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
import psutil

from tests.gateway.service import Gateway


@dataclass(frozen=True)
class Watching:
    gateway: Gateway
    worker: int
    """Its pid."""

    def counted(self, name: str, **labels: str) -> float:
        """What the worker has counted: the sum of the samples with these labels."""
        [address] = [one.laddr for one in psutil.net_connections("inet") if (one.pid, one.status) == (self.worker, "LISTEN")]
        total = 0.0
        for line in httpx.get(f"http://127.0.0.1:{address.port}/metrics", timeout=60).text.splitlines():
            sample, _, value = line.rpartition(" ")
            if sample.partition("{")[0] == name and all(f'{key}="{wanted}"' in sample for key, wanted in labels.items()):
                total += float(value)
        return total
