"""What /metrics tells Prometheus, in its text format 0.0.4."""

import threading
from collections import Counter

import jax

from sdjax.devices.host import resident

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)  # upper bounds of the histogram of batch sizes


class Metrics:
    """Counts that any thread may add to."""

    def __init__(self):
        self.lock = threading.Lock()
        self.answers: Counter[tuple[str, int]] = Counter()  # (interface, status)
        self.batches: Counter[int] = Counter()  # by size
        self.pictures, self.seconds = 0, 0.0

    def drawn(self, count: int, seconds: float) -> None:
        """Notes a batch of `count` pictures."""
        with self.lock:
            self.batches[count] += 1
            self.pictures += count
            self.seconds += seconds

    def answered(self, interface: str, status: int) -> None:
        with self.lock:
            self.answers[interface, status] += 1

    def seconds_a_picture(self) -> float:
        with self.lock:
            return self.seconds / self.pictures if self.pictures else 1.0

    def text(self, waiting: int, running: int) -> str:
        """Returns the page. waiting, running: numbers of requests."""
        with self.lock:
            answers, batches = dict(self.answers), dict(self.batches)
            pictures, seconds = self.pictures, self.seconds
        total = sum(size * times for size, times in batches.items())
        buckets = [(str(top), sum(times for size, times in batches.items() if size <= top)) for top in SIZES]
        buckets.append(("+Inf", sum(batches.values())))
        lines = [
            *metric("sdjax_queue_length", "gauge", "Requests that wait.", [("", waiting)]),
            *metric("sdjax_running", "gauge", "Requests that are drawn.", [("", running)]),
            *metric(
                "sdjax_requests_total",
                "counter",
                "Answers, by interface and status.",
                [(f'{{interface="{kind}",status="{status}"}}', n) for (kind, status), n in sorted(answers.items())],
            ),
            "# HELP sdjax_batch_size Pictures that were drawn together.",
            "# TYPE sdjax_batch_size histogram",
            *(f'sdjax_batch_size_bucket{{le="{top}"}} {count}' for top, count in buckets),
            f"sdjax_batch_size_sum {total}",
            f"sdjax_batch_size_count {sum(batches.values())}",
            "# HELP sdjax_picture_seconds Seconds of the devices a picture.",
            "# TYPE sdjax_picture_seconds summary",
            f"sdjax_picture_seconds_sum {seconds:.6f}",
            f"sdjax_picture_seconds_count {pictures}",
            *metric(
                "sdjax_device_memory_bytes", "gauge", "Memory in use.", [(f'{{device="{n}"}}', b) for n, b in memory()]
            ),
            *metric("sdjax_process_memory_bytes", "gauge", "Resident memory.", [("", resident())]),
        ]
        return "\n".join(lines) + "\n"


def metric(name: str, kind: str, words: str, values: list[tuple[str, float]]) -> list[str]:
    return [f"# HELP {name} {words}", f"# TYPE {name} {kind}", *(f"{name}{labels} {value}" for labels, value in values)]


def memory() -> list[tuple[int, int]]:
    """Returns (number, bytes in use) of each device that tells them."""
    found = [(device.id, (device.memory_stats() or {}).get("bytes_in_use")) for device in jax.local_devices()]
    return [(number, used) for number, used in found if used is not None]
