"""Peak memory of a run: on a GPU what torch allocated, on a CPU what the process held."""

import resource
import sys

import torch


class PeakMemory:
    """Measures from its creation (or `reset`) on.

    CUDA: the peaks of torch's allocator on the device. CPU: the peak resident set of the
    whole process; Linux can forget an earlier peak, elsewhere it counts from the start of the
    process (`since_start` says which).
    """

    def __init__(self, device):
        self.device = torch.device(device)
        self.since_start = False
        self.reset()

    def reset(self):
        """Forget the peak so far."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return
        try:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # resets VmHWM, see proc(5)
        except OSError:  # not Linux, or not allowed: the peak counts from the process's start
            self.since_start = True

    def read(self):
        """dict: peak_memory_bytes, peak_reserved_bytes (None on a CPU), memory_kind."""
        if self.device.type == "cuda":
            return {
                "peak_memory_bytes": torch.cuda.max_memory_allocated(self.device),
                "peak_reserved_bytes": torch.cuda.max_memory_reserved(self.device),
                "memory_kind": "device, allocated by torch",
            }
        kind = "host, resident" + (" since process start" if self.since_start else "")
        return {
            "peak_memory_bytes": _peak_resident(),
            "peak_reserved_bytes": None,
            "memory_kind": kind,
        }


def _peak_resident():
    """Bytes. VmHWM where there is /proc, because ru_maxrss cannot be reset."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except FileNotFoundError:  # not Linux
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
