"""Work of more than a moment: shared out to threads, and reported while it lasts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

T = TypeVar("T")

CHUNK = 32
"""Items that a thread takes at a time."""

Advance = Callable[[int], None]
"""Is told how many more items (pictures, episodes, megabytes) are done."""

Reporter = Callable[[str, int | None], AbstractContextManager[Advance]]
"""Opened with what is being done, such as "decoding pictures", and how many items there are, or
None if nobody knows. Left with the exception if there is one, KeyboardInterrupt too."""


@contextmanager
def silent(what: str, total: int | None) -> Iterator[Advance]:
    """The reporter of a program that has not chosen another."""
    yield lambda _: None


_reporter: Reporter = silent


@contextmanager
def report_to(reporter: Reporter) -> Iterator[None]:
    """Within this context, long work of this process is reported to `reporter`."""
    global _reporter
    before, _reporter = _reporter, reporter
    try:
        yield
    finally:
        _reporter = before


def is_reported() -> bool:
    """Whether anybody is told of long work."""
    return _reporter is not silent


def reported(what: str, total: int | None) -> AbstractContextManager[Advance]:
    """`with reported("decoding pictures", 600) as advance:`, where `advance(1)` follows each."""
    return _reporter(what, total)


def each(items: Sequence[T], what: str) -> Iterator[T]:
    """The items, one after the other; what is done with each is reported as `what`."""
    with reported(what, len(items)) as advance:
        for item in items:
            yield item
            advance(1)


def for_each(
    work: Callable[[int], None],
    n: int,
    what: str,
    threads: int | None = None,
    size: int = CHUNK,
) -> None:
    """Call work(0) .. work(n - 1), shared out to threads, each exactly once and in any order.

    So `work(i)` has to put its result in a place of its own. What it raises is raised here, once
    the others have stopped.

    what:    what is being done, for the reporter.
    threads: default: as many as torch uses.
    size:    items that a thread takes at a time.
    """
    import torch  # the command line imports this module before it needs torch

    threads = min(threads or torch.get_num_threads(), -(-n // size))
    stop = threading.Event()

    def chunk(start: int) -> int:
        end = min(start + size, n)
        try:
            for i in range(start, end):
                if stop.is_set():  # of large pictures a chunk takes long, and Ctrl-C is to end it
                    break
                work(i)
        except BaseException:
            stop.set()  # here, for results are waited for in their order
            raise
        return end - start

    with reported(what, n) as advance:
        starts = range(0, n, size)
        if threads <= 1:
            for start in starts:
                advance(chunk(start))
            return
        with ThreadPoolExecutor(threads) as pool:
            try:
                for done in pool.map(chunk, starts):
                    advance(done)
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise
