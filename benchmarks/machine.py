"""What the machine can do at most, measured in the run that it is compared with.

``python benchmarks/machine.py`` prints it. A benchmark asks for the peaks, says how much work one
of its rows cannot do without, and gets the least seconds that it could take.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

SIDE = 1024  # of the square matrices
REPEATS = 15


class Peaks(NamedTuple):
    """Of one thread or of all, as torch is set."""

    gflops: float  # of a product of two float32 matrices
    gigabytes: float  # per second that a copy reads and writes, of as many bytes as asked for

    def limit(self, flops: float = 0.0, size: float = 0.0) -> float:
        """The least seconds for so many operations and bytes read or written."""
        return max(flops / (1e9 * self.gflops), size / (1e9 * self.gigabytes))

    def as_dict(self) -> dict[str, float]:
        """For a benchmark's JSON."""
        return {"matmul_gflops": self.gflops, "copy_gb_per_second": self.gigabytes}


def peaks(size: float) -> Peaks:
    """Measures the machine.

    Args:
        size: How many bytes the work that is compared goes over. What fits into a cache is copied
            there, too.
    """
    return Peaks(product_gflops(), copy_gigabytes(size))


def product_gflops() -> float:
    """Of a product of two float32 matrices."""
    left, right, product = torch.randn(3, SIDE, SIDE)
    return 2 * SIDE**3 / best(lambda: torch.mm(left, right, out=product)) / 1e9


def copy_gigabytes(size: float) -> float:
    """Per second that a copy reads and writes which goes over so many bytes."""
    source = torch.ones(max(1024, int(size / 8)))  # float32, once read and once written
    target = torch.zeros_like(source)
    return 8 * len(source) / best(lambda: target.copy_(source)) / 1e9


def best(work: Callable[[], object]) -> float:
    """The fewest seconds of some tries; other load on the machine only adds to them."""
    tries = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        tries.append(time.perf_counter() - started)
    return min(tries)


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads")
    for megabytes in (1, 10, 100):
        gflops, gigabytes = peaks(1e6 * megabytes)
        print(f"{megabytes:4} MB: product {gflops:.0f} GFLOP/s, copy {gigabytes:.1f} GB/s")
