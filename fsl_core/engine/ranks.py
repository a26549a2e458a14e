"""The processes that compute one run together: the ranks of a torch.distributed group.

Every rank holds the whole learner and computes a part of the tasks. What they tell each other is
plain data (losses, scores, flags) and tensors (gradients). A rank that fails tells the others why,
and all of them raise: none is left waiting.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fsl_core.blame import raised
from fsl_core.engine.environment import STORE, place_among_ranks
from fsl_core.errors import FslError, Interrupted, LostRankError, RunError, TrainingError

T = TypeVar("T")

LONGEST_WAIT = timedelta(days=7)
"""A rank waits as long as another one works; one that dies is noticed by its closed connection."""

MESSAGE = 1024
"""Bytes that a message of each rank has at first. A longer one takes a second round."""

PIECE = 1 << 18
"""Numbers of a sum that are passed on at a time: the next rank adds them meanwhile."""


class Ranks:
    """A group of processes, as one of them sees it. Without a group it is one process alone.

    rank:  the number of this process.    count: of processes.
    sent:  bytes that this rank has handed over so far.
    """

    def __init__(self, rank: int = 0, count: int = 1, group: Any = None):
        self.rank, self.count, self.sent = rank, count, 0
        self._group = group
        self._processes: list[tuple[str, int]] = []
        if count > 1:
            own = (socket.gethostname(), os.getpid())
            self._processes = [(host, pid) for host, pid in self.gather(lambda: own)]

    @property
    def alone(self) -> bool:
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this rank writes and prints: one does."""
        return self.rank == 0

    def part(self, n: int) -> range:
        """Which of n things this rank computes: a contiguous part, nothing if others take all."""
        size, left = divmod(n, self.count)
        start = self.rank * size + min(self.rank, left)
        return range(start, start + size + (self.rank < left))

    def gather(self, work: Callable[[], T]) -> list[T]:
        """What `work` gives on each rank, in their order: plain data, as JSON takes it.

        If it raises on any rank, every rank raises: that one its own error, the others one of the
        same kind that names it.
        """
        if self.alone:
            return [work()]
        met: BaseException | None = None
        try:
            told: dict[str, Any] = {"gave": work()}
        except (Exception, Interrupted) as error:
            met, told = error, _as_told(error)
        heard = self._exchange(told)
        if met is not None:
            if isinstance(met, FslError):
                met.told = True
            raise met
        for rank, message in enumerate(heard):
            if "failed" in message:
                raise _as_error(rank, message)
        return [message["gave"] for message in heard]

    def told(self, work: Callable[[], T]) -> T:
        """What `work` gives on the first rank, which alone does it; plain data."""
        found: Any = self.gather(lambda: work() if self.first else None)[0]
        return found

    def in_turn(self, work: Callable[[], T]) -> T:
        """What `work` gives on this rank; the others do it once the first one is done.

        So they find what it has downloaded, put into the cache or written.
        """
        results: list[T] = []
        self.gather(lambda: results.append(work()) if self.first else None)
        self.gather(lambda: None if self.first else results.append(work()))
        return results[0]

    def sum_in_order(self, terms: Sequence[Tensor], out: Tensor, holders: int) -> Tensor:
        """((first rank's first + its second) + ... ) + the last rank's last, on every rank.

        That is the order of one process, so the bits are its bits. A rank adds its terms to what
        the one before it has added up, and passes it on, piece by piece; the last one tells all.
        So each rank sends as many numbers as one term has.

        terms:   flat, of one size and dtype.    out: is filled, like a term.
        holders: ranks that have terms; they are the first ones.
        """
        last = holders - 1
        with self._connected():
            for start in range(0, len(out), PIECE) if self.rank < holders else ():
                piece = out[start : start + PIECE]
                own = [term[start : start + PIECE] for term in terms]
                if self.first:
                    piece.copy_(own[0])
                    own = own[1:]
                else:
                    dist.recv(piece, self.rank - 1, self._group)
                for term in own:
                    piece.add_(term)
                if self.rank < last:
                    self._count(piece)
                    dist.send(piece, self.rank + 1, self._group)
            if self.rank == last:
                self._count(out)
            dist.broadcast(out, last, self._group)
        return out

    def rows(self, own: Tensor, counts: Sequence[int]) -> Tensor:
        """The rows of all ranks as one matrix, in their order. counts: of each rank's rows."""
        padded = own.new_zeros(max(counts), own.shape[1])
        padded[: len(own)] = own
        found = [torch.empty_like(padded) for _ in counts]
        self._count(padded)
        with self._connected():
            dist.all_gather(found, padded, self._group)
        return torch.cat([rows[:n] for rows, n in zip(found, counts, strict=True)])

    def equal_start(self, *modules: torch.nn.Module) -> None:
        """Give every rank the parameters and buffers that the first one has."""
        for tensor in (t for m in modules for t in m.state_dict().values()):
            if not self.alone and isinstance(tensor, Tensor) and tensor.numel():
                held = tensor.detach().contiguous()
                with self._connected():
                    dist.broadcast(held, 0, self._group)
                tensor.detach().copy_(held)

    def _exchange(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        """The messages of all ranks. One round if all of them are short."""
        text = json.dumps(message).encode()
        head = len(text).to_bytes(8, "little")
        found = self._bytes_of_all(head + text[: MESSAGE - 8], MESSAGE)
        lengths = [int.from_bytes(each[:8], "little") for each in found]
        if max(lengths) > MESSAGE - 8:
            found = self._bytes_of_all(head + text, max(lengths) + 8)
        return [json.loads(each[8 : 8 + n]) for each, n in zip(found, lengths, strict=True)]

    def _bytes_of_all(self, text: bytes, size: int) -> list[bytes]:
        own = torch.frombuffer(bytearray(text.ljust(size, b"\0")), dtype=torch.uint8)
        found = [torch.empty_like(own) for _ in range(self.count)]
        self.sent += len(text)
        with self._connected():
            dist.all_gather(found, own, self._group)
        return [each.numpy().tobytes() for each in found]

    def _count(self, tensor: Tensor) -> None:
        self.sent += tensor.numel() * tensor.element_size()

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """Within this context a connection that breaks is one line, which names who has ended."""
        try:
            yield
        except RuntimeError as error:  # torch has no narrower class for what gloo and nccl raise
            raise LostRankError(self._who_ended(), self.rank) from error

    def _who_ended(self) -> list[int]:
        """Ranks of this machine that have ended; none is named if they are elsewhere."""
        here, deadline = socket.gethostname(), time.monotonic() + 1.0
        while True:
            others = enumerate(self._processes)
            gone = [rank for rank, (host, pid) in others if host == here and not _lives(pid)]
            if gone or time.monotonic() > deadline:
                return gone
            time.sleep(0.02)  # its connection was closed a little before it ended


ALONE = Ranks()
"""One process, which computes everything itself."""

_joined: Ranks | None = None


def join() -> Ranks:
    """The ranks that this process is one of, joined at the first call; ALONE if it is none.

    It is one if `torchrun` or `fsl run --processes` has started it. A program that has called
    torch.distributed.init_process_group itself is taken as it is.
    Raises RunError if they cannot meet, or if there are fewer GPUs than processes.
    """
    global _joined
    if _joined is None:
        program = dist.is_available() and dist.is_initialized()
        _joined = _group_of_program() if program else _group_of_environment()
    return _joined


def _group_of_program() -> Ranks:
    if dist.get_world_size() == 1:
        return ALONE
    group = dist.new_group(backend=_backend(), timeout=LONGEST_WAIT)
    return Ranks(dist.get_rank(), dist.get_world_size(), group)


def _group_of_environment() -> Ranks:
    rank, count = place_among_ranks()
    if count == 1:
        return ALONE
    store = os.environ.get(STORE)
    where = Path(store).as_uri() if store else "env://"
    try:
        dist.init_process_group(
            _backend(), init_method=where, rank=rank, world_size=count, timeout=LONGEST_WAIT
        )
    except (RuntimeError, ValueError) as error:
        raise RunError(
            f"rank {rank} of {count}: it could not meet the others: {error}. Processes that "
            "torchrun or --processes started, with MASTER_ADDR and MASTER_PORT as it set them"
        ) from error
    return Ranks(rank, count, dist.group.WORLD)


def _backend() -> str:
    """gloo for what lies in memory, and nccl for what lies on GPUs."""
    nccl = torch.cuda.is_available() and dist.is_nccl_available()
    return "cpu:gloo,cuda:nccl" if nccl else "gloo"


def _lives(pid: int) -> bool:
    """Whether a process of this machine runs; one that nobody has waited for yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return state.rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return not Path("/proc/self/stat").exists()


def _as_told(error: BaseException) -> dict[str, str]:
    if isinstance(error, Interrupted):
        return {"failed": "interrupted"}
    if isinstance(error, TrainingError):
        return {"failed": "training", "text": str(error)}
    own = str(error) if isinstance(error, FslError) else raised(error, "")
    return {"failed": "run", "text": own}


def _as_error(rank: int, message: dict[str, str]) -> BaseException:
    if message["failed"] == "interrupted":
        return Interrupted()
    kind = TrainingError if message["failed"] == "training" else RunError
    error = kind(message["text"] if rank == 0 else f"rank {rank}: {message['text']}")
    error.told = True
    return error
