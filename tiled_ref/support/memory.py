"""Peak memory of a run: allocated by torch on a GPU, resident in the process on a CPU."""

import gc
import math
import sys

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None


class PeakMemory:
    """Peak memory since creation or the last `reset`.

    CUDA: of torch's allocator on the device. CPU: of the resident set of the whole process. Only
    Linux can reset an earlier peak; elsewhere `since_start` is True. Linux updates its peak
    irregularly and may report less than before, so the largest reading is kept. Windows
    reports none. Parameters: device.
    """

    def __init__(self, device):
        self.device = torch.device(device)
        self.since_start = False
        self.reset()

    def reset(self):
        """Discard the peak so far."""
        self.resident = None  # bytes, the largest reading
        if self.device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()  # or what an earlier cell has reserved would count
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # resets VmHWM, see proc(5)
        except OSError:  # not Linux, or not permitted: the peak is since the process started
            self.since_start = True

    def read(self):
        """dict: peak_memory_bytes (None if the system reports none), peak_reserved_bytes
        (None on a CPU), memory_kind."""
        if self.device.type == "cuda":
            return {
                "peak_memory_bytes": torch.cuda.max_memory_allocated(self.device),
                "peak_reserved_bytes": torch.cuda.max_memory_reserved(self.device),
                "memory_kind": "device, allocated by torch",
            }
        readings = [n for n in (self.resident, _peak_resident()) if n is not None]
        self.resident = max(readings, default=None)
        kind = "host, resident" + (" since process start" if self.since_start else "")
        kind = "host, not reported" if self.resident is None else kind
        return dict(peak_memory_bytes=self.resident, peak_reserved_bytes=None, memory_kind=kind)


def _peak_resident():
    """Bytes, or None. Prefers VmHWM from /proc because ru_maxrss cannot be reset."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except FileNotFoundError:  # not Linux
        pass
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_memory():
    """Bytes of host memory that are free or reclaimable; infinity if not reported, as on systems
    other than Linux."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            sizes = dict(line.split(":") for line in file)
        return int(sizes["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return math.inf
