from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fsl_core.data.work import CHUNK, for_each, report_to, reported


@pytest.fixture
def told() -> Iterator[list]:
    """What is reported, and with which exception it ended."""
    lines: list = []

    @contextmanager
    def reporter(what: str, total: int | None):
        lines.append((what, total))
        try:
            yield lines.append
        except BaseException as error:
            lines.append(type(error))
            raise

    with report_to(reporter):
        yield lines


@pytest.mark.parametrize("threads", [None, 1, 2, 7])
@pytest.mark.parametrize("n", [0, 1, CHUNK, 5 * CHUNK + 3])
def test_every_item_is_worked_on_once_and_told_of(told: list, threads: int | None, n: int):
    done = [0] * n

    def work(i: int) -> None:
        done[i] += 1

    for_each(work, n, "counting", threads)
    assert done == [1] * n
    assert told[0] == ("counting", n)
    assert sum(told[1:]) == n


def test_threads_share_the_work():
    met = threading.Barrier(3)  # passes only if three are inside at a time
    for_each(lambda i: met.wait(60), 3, "meeting", threads=3, size=1)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_is_raised_ends_the_others_and_reaches_the_reporter(
    told: list, threads: int, error: type[BaseException]
):
    n, done = 1000 * threads, []

    def work(i: int) -> None:
        if i == n - 999:  # in the last chunk; that of the first one is waited for before it
            raise error
        time.sleep(0.01)  # the others would take ten seconds, on a busy machine at least
        done.append(i)

    with pytest.raises(error):
        for_each(work, n, "failing", threads, size=1000)
    assert told[-1] is error
    assert len(done) < 900


def test_the_reporter_of_before_comes_back(told: list):
    @contextmanager
    def other(what: str, total: int | None):
        yield lambda _: None

    with report_to(other), reported("unseen", None):
        pass
    with reported("seen", None):
        pass
    assert told == [("seen", None)]
