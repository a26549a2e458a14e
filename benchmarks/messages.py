"""Seconds in which ranks of this machine tell each other a step: `python -m benchmarks.messages`.

Processes of one thread, gloo, medians. The first lines are the constants of the formula in
docs/beyond.md: what a message of one number costs, bytes per second of a large one, and numbers per
second that are added. The table holds the times which the formula is to give.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

from fsl_core.engine.ranks import PIECE, Ranks

SIZES = (112_000, 1_000_000, 8_000_000)
"""Numbers of a gradient; the first are Conv4-64's, the last ResNet-12's."""

TASKS = 4
REPEATS = 30


def median(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median of the seconds that `work` takes when all ranks begin it together."""
    found = []
    for _ in range(repeats):
        dist.barrier()
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return statistics.median(found)


def one_way(numbers: int) -> float:
    """Seconds of a message from rank 0 to rank 1: half of there and back."""
    tensor, rank = torch.zeros(numbers), dist.get_rank()

    def there_and_back() -> None:
        if rank == 0:
            dist.send(tensor, 1)
            dist.recv(tensor, 1)
        elif rank == 1:
            dist.recv(tensor, 0)
            dist.send(tensor, 0)

    return median(there_and_back) / 2


def measure(rank: int, count: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=count)
    ranks = Ranks(rank, count, dist.group.WORLD)
    latency, piece = one_way(1), one_way(PIECE)
    sums, added = torch.zeros(PIECE), torch.ones(PIECE)
    adding = median(lambda: sums.add_(added))
    gathered = median(lambda: ranks.gather(lambda: [0.5] * TASKS))
    told = [f"losses told: {1e3 * gathered:.2f} ms"]
    for size in SIZES:
        terms, out = [torch.ones(size)] * len(ranks.part(TASKS)), torch.empty(size)
        holders = min(count, TASKS)
        seconds = median(lambda: ranks.sum_in_order(terms, out, holders), 10)  # noqa: B023
        told.append(f"sum of {size} numbers of {TASKS} tasks: {1e3 * seconds:.2f} ms")
    if rank == 0:
        print(f"{count} ranks: latency {1e6 * latency:.0f} us", end=", ")
        print(f"{4 * PIECE / (piece - latency) / 1e9:.2f} GB/s", end=", ")
        print(f"{PIECE / adding / 1e9:.2f}e9 numbers added per s")
        print(*told, sep="\n", flush=True)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4])
    for count in parser.parse_args().ranks:
        with tempfile.TemporaryDirectory() as folder:
            store = os.path.join(folder, "store")
            processes.spawn(measure, (count, store), nprocs=count)


if __name__ == "__main__":
    main()
