"""Metrics of a worker's GPU, as its driver reports them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import pytest
import torch
from prometheus_client import CollectorRegistry

from server.worker.device_metrics import DeviceLoadCollector

UTILIZATION, POWER, TEMPERATURE = "opsin_device_utilization_ratio", "opsin_device_power_watts", "opsin_device_temperature_celsius"


class NVMLError(Exception):
    """The base class of the library's errors."""


@dataclass(frozen=True)
class Card:
    utilization: int | None
    """Percent; None: the card does not report it."""
    milliwatts: int = 0
    celsius: int = 0


@dataclass(frozen=True)
class FakeNvml:
    """NVIDIA's management library, as `nvidia-ml-py` shows it on a machine with cards."""

    cards: list[Card]

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let torch find this library."""
        module = ModuleType("pynvml")
        vars(module).update(
            NVMLError_DriverNotLoaded=NVMLError,
            nvmlInit=lambda: None,
            nvmlDeviceGetHandleByIndex=self.cards.__getitem__,
            nvmlDeviceGetUtilizationRates=self.utilization_rates,
            nvmlDeviceGetPowerUsage=lambda card: card.milliwatts,
            nvmlDeviceGetTemperature=lambda card, sensor: card.celsius,
        )
        monkeypatch.setitem(sys.modules, "pynvml", module)
        monkeypatch.setattr(torch.cuda, "pynvml", module, raising=False)
        monkeypatch.setattr(torch.cuda, "_HAS_PYNVML", True)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    @staticmethod
    def utilization_rates(card: Card) -> SimpleNamespace:
        if card.utilization is None:
            raise NVMLError("Not Supported")
        return SimpleNamespace(gpu=card.utilization)


def scrape(name: str) -> dict[str, float]:
    """Return metric → value of the device of this name."""
    registry = CollectorRegistry()
    registry.register(DeviceLoadCollector(torch.device("cuda"), name))
    return {sample.name: sample.value for family in registry.collect() for sample in family.samples if sample.labels == {"device": name}}


def test_the_load_of_the_workers_own_gpu_is_in_its_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml([Card(5, 60_000, 30), Card(73, 412_500, 61)]).install(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert scrape("cuda:1") == {UTILIZATION: pytest.approx(0.73), POWER: pytest.approx(412.5), TEMPERATURE: 61}


def test_what_a_gpu_does_not_report_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    FakeNvml([Card(None, 60_000, 30)]).install(monkeypatch)
    assert scrape("cuda") == {POWER: 60, TEMPERATURE: 30}


def test_without_the_library_there_are_no_series(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml([Card(5)]).install(monkeypatch)
    monkeypatch.setattr(torch.cuda, "_HAS_PYNVML", False)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert scrape("cuda") == {}
