"""Metrics of a worker's GPU that its driver measures. They are read when Prometheus scrapes, so that a slow driver delays no heartbeat."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kernels.devices import device_load

FAMILIES = {
    "utilization": ("opsin_device_utilization_ratio", "Share of the time in which the worker's GPU ran a kernel, of any process."),
    "watts": ("opsin_device_power_watts", "Power that the worker's GPU draws."),
    "celsius": ("opsin_device_temperature_celsius", "Temperature of the worker's GPU."),
}


@dataclass(frozen=True, eq=False)
class DeviceLoadCollector(Collector):
    device: torch.device
    name: str

    def collect(self) -> Iterable[Metric]:
        for quantity, value in device_load(self.device).items():
            family = GaugeMetricFamily(*FAMILIES[quantity], labels=["device"])
            family.add_metric([self.name], value)
            yield family
