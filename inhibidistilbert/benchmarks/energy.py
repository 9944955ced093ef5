"""Energy of a piece of work, by the Zeus library: NVML or AMD SMI on GPUs, RAPL on processors, where they can be read.

Without Zeus NVIDIA's counter is read as it is.
"""

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch


class Meter(Protocol):
    """What reads energy. `source` says of what, for the header of the results."""

    source: str

    def joules(self, work: Callable[[], object]) -> float:
        """Energy that one call takes, in joules; 0 where the counter did not move, as in too short a call."""


class NoMeter(Exception):
    """Nothing here can be read, and why."""


class ZeusMeter:
    """Energy of one GPU, or of all processor packages and their memory where they are counted, read by `ZeusMonitor`."""

    def __init__(self, monitor: Any, source: str):
        self.monitor, self.source = monitor, source

    def joules(self, work: Callable[[], object]) -> float:
        self.monitor.begin_window("work", restart=True)
        work()
        with warnings.catch_warnings():
            # Zeus warns of a counter that did not move: here the result says so.
            warnings.simplefilter("ignore")
            measured = self.monitor.end_window("work")
        parts = (measured.gpu_energy, measured.cpu_energy, measured.dram_energy)
        return sum(sum(part.values()) for part in parts if part)


class NvmlMeter:
    """Energy of one NVIDIA GPU, by the counter of its driver (since Volta), in millijoules.

    Args:
        nvml: the module `pynvml` of the package nvidia-ml-py, initialised.
        handle: the GPU as that module knows it.
    """

    def __init__(self, nvml: Any, handle: Any, name: str):
        self._nvml, self._handle = nvml, handle
        self.source = f"NVML, {name}"

    def joules(self, work: Callable[[], object]) -> float:
        before = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        work()
        return (self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) - before) / 1000


def _find_nvml_meter(device: torch.device) -> Meter:
    try:
        import pynvml
    except ImportError:
        raise NoMeter("neither zeus nor nvidia-ml-py is installed") from None
    properties: Any = torch.cuda.get_device_properties(device)
    try:
        pynvml.nvmlInit()
        # By its number, which does not depend on which GPUs this process may see.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")
        meter = NvmlMeter(pynvml, handle, properties.name)
        meter.joules(lambda: None)
    except pynvml.NVMLError as error:
        raise NoMeter(f"the energy counter of {device} cannot be read: {error}") from error
    return meter


def find_meter(device: torch.device) -> Meter:
    """The meter of `device`. Raises `NoMeter` where there is none."""
    try:
        from zeus.monitor import ZeusMonitor
    except ImportError:
        if device.type == "cuda" and torch.version.hip is None:
            return _find_nvml_meter(device)
        raise NoMeter('the package zeus is not installed: pip install "zeus>=0.12"') from None
    gpus = [] if device.type == "cpu" else [device.index or 0]
    try:
        monitor = ZeusMonitor(gpu_indices=gpus, cpu_indices=[] if gpus else None)
        if not (monitor.gpu_indices or monitor.cpu_indices):
            raise NoMeter("this machine has no energy counter that can be read (Linux: /sys/class/powercap, by root)")
        meter = ZeusMeter(monitor, f"Zeus, {torch.cuda.get_device_name(device) if gpus else 'RAPL'}")
        meter.joules(lambda: None)
    except NoMeter:
        raise
    except Exception as error:  # Zeus passes on whatever the drivers raise.
        raise NoMeter(f"the energy counter of {device} cannot be read: {error}") from error
    return meter
