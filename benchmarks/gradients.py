"""Races of one meta-gradient: first all contenders have to agree, then they are timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from statistics import median

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import problems
from benchmarks.contenders import contenders, enter_fewer_digits, name_of
from benchmarks.contestant import Contestant
from benchmarks.peers import LIBRARIES, torch_func
from benchmarks.problems import Problem
from benchmarks.race import LeftOut, Work, check_agreement, fastest, race, ratio
from benchmarks.settings import Settings

FLOAT64_LIMIT = 1e-9


FLOAT32_LIMIT = 1e-3
"""Not on Conv4: there the number of threads alone changes which pixel is pooled, if two are nearly
equal.
"""


CHECKED_TASKS = 4
"""Of the meta-batch, in float64."""


def sinusoid(settings: Settings) -> dict:
    """Sinusoid MAML, MLP 1-40-40-1, 10 shots, 25 tasks, 1 step, second order."""
    return _section(settings, problems.sinusoid, tasks=25, slow_to_start=True)


def omniglot(settings: Settings) -> dict:
    """MAML, Conv4-64, 28x28, 5-way 1-shot 15-query, 16 tasks, 1 step, second order."""
    return _section(
        settings,
        problems.omniglot,
        tasks=16,
        float32_limit=math.inf,
        fewer_digits=True,
        **_small(settings),
    )


def omniglot_5(settings: Settings) -> dict:
    """The same with 5 inner steps."""
    return _section(
        settings,
        problems.omniglot,
        tasks=16,
        float32_limit=math.inf,
        fewer_digits=True,
        steps=5,
        **_small(settings),
    )


def centroid(settings: Settings) -> dict:
    """Nearest centroid, Conv4-64, 28x28, 5-way 1-shot 15-query, 32 tasks."""
    return _section(
        settings, problems.centroid, tasks=32, float32_limit=math.inf, **_small(settings)
    )


def published(settings: Settings) -> dict:
    """The step of MAML's Omniglot figures: 32 tasks, 1 query a class, four strided layers of 64."""
    return _section(
        settings,
        problems.published,
        tasks=32,
        float32_limit=math.inf,
        slow_to_start=not settings.quick,  # compiling its code takes a minute, for a smoke test
        fewer_digits=True,
        **_few(settings),
    )


def gpu(settings: Settings) -> dict:
    """MAML, Conv4-64, 28x28, 5-way 1-shot 15-query, 32 tasks, 1 step, second order, on a GPU."""
    return _on_gpu(settings, problems.omniglot, tasks=32, **_small(settings))


def gpu_published(settings: Settings) -> dict:
    """The step of MAML's Omniglot figures on a GPU."""
    return _on_gpu(settings, problems.published, tasks=32, **_few(settings))


def gpu_sinusoid(settings: Settings) -> dict:
    """Sinusoid MAML on a GPU."""
    return _on_gpu(settings, problems.sinusoid, tasks=25)


def _on_gpu(settings: Settings, make: Callable[..., Problem], tasks: int, **sizes) -> dict:
    if not torch.cuda.is_available():
        raise LeftOut("no GPU here")
    torch.backends.cudnn.allow_tf32 = False  # all compute in float32
    return _section(
        settings,
        make,
        tasks,
        device="cuda",
        slow_to_start=True,
        fewer_digits=True,
        float32_limit=math.inf,
        **sizes,
    )


def _few(settings: Settings) -> dict:
    return {"channels": 4} if settings.quick else {}


def _small(settings: Settings) -> dict:
    return {"channels": 4, "n_query": 2} if settings.quick else {}


def _section(
    settings: Settings,
    make: Callable[..., Problem],
    tasks: int,
    device: str = "cpu",
    slow_to_start: bool = False,
    float32_limit: float = FLOAT32_LIMIT,
    fewer_digits: bool = False,
    **sizes,
) -> dict:
    tasks = 3 if settings.quick else tasks
    with _default_dtype(torch.float64):
        exact = make(tasks=min(tasks, CHECKED_TASKS), **sizes).to(torch.float64, device)
        agreement = {"float64": agree(exact, FLOAT64_LIMIT, False, not settings.quick)}
    problem = make(tasks=tasks, **sizes).to(torch.float32, device)
    agreement["float32"] = agree(problem, float32_limit, slow_to_start, not settings.quick)
    entered, left_out = contenders(problem, slow_to_start, processes=not settings.quick)
    if fewer_digits:
        enter_fewer_digits(problem, entered, left_out)
    rates = machine_rates(device)
    with ExitStack() as processes:
        works: dict[str, Work] = {**entered}
        if not settings.quick:
            sizes_of_all = sizes | {"tasks": tasks}
            for name in entered:
                contestant = Contestant(make.__name__, sizes_of_all, device, name)
                works[name] = processes.enter_context(contestant)
        works |= {name: work for name, (work, _) in rates.items()}
        if device != "cpu" and not settings.quick:
            # Compiling takes minutes, and such a machine has cores for all.
            with ThreadPoolExecutor(len(works)) as pool:
                list(pool.map(lambda work: work(), works.values()))
        seconds = race(works, settings.budget, settings.rounds, settings.block)
    result = summary({name: seconds[name] for name in entered}, left_out)
    operations = _operations(make(tasks=1, **sizes)) * tasks
    return result | {
        "agreement": agreement,
        "operations": operations,
        "operations_per_second": {name: operations / median(seconds[name]) for name in entered},
        "machine_rates": {
            name: flops / median(seconds[name]) for name, (_, flops) in rates.items()
        },
    }


def agree(
    problem: Problem, limit: float, slow_to_start: bool, processes: bool = False
) -> dict[str, float]:
    """`check_agreement` of everybody who can compute this meta-gradient."""
    entered, _ = contenders(problem, slow_to_start, processes)
    # Some give the same tensors at each call, and fill them again; some give arrays of their own.
    found = {name: [torch.from_dlpack(g).clone() for g in work()] for name, work in entered.items()}
    return check_agreement(found, limit)


def summary(seconds: dict[str, list[float]], left_out: dict[str, str]) -> dict:
    """Medians, and ratios to the fastest of ours.

    `peer`: the fastest library, which the target counts against.
    """
    own = fastest({name: s for name, s in seconds.items() if name.startswith("ours")})
    libraries = {name_of(module) for module in LIBRARIES}
    raced = {
        name: s
        for name, s in seconds.items()
        if name in libraries or name.split(",")[0] in libraries
    }
    return {
        "seconds": {name: median(s) for name, s in seconds.items()},
        "ratios": {
            name: list(vars(ratio(s, seconds[own])).values()) for name, s in seconds.items()
        },
        "ours": own,
        "peer": fastest(raced) if raced else None,
        "left_out": left_out,
        "rounds": len(seconds[own]),
    }


def machine_rates(device: str = "cpu") -> dict[str, tuple[Work, float]]:
    """What the machine reaches on plain arithmetic, float32.

    Name -> (work, its floating-point operations).
    """
    a = torch.randn(1024, 1024, device=device)
    x, w = torch.randn(75, 64, 28, 28, device=device), torch.randn(64, 64, 3, 3, device=device)
    x_last, w_last = (t.to(memory_format=torch.channels_last) for t in (x, w))
    convolution = 2 * x.numel() * 64 * 9
    return {
        "matrix product, 1024 x 1024": (lambda: a @ a, 2 * 1024**3),
        "3x3 convolution, 75 x 64 x 28 x 28": (lambda: F.conv2d(x, w, padding=1), convolution),
        "the same, channels last": (lambda: F.conv2d(x_last, w_last, padding=1), convolution),
    }


def _operations(problem: Problem) -> int:
    """Floating-point operations of one task's meta-gradient as plain torch computes it.

    Products and convolutions alone.
    """
    inner = (problem.inner_lr, problem.inner_steps) if problem.kind == "maml" else ()
    work = getattr(torch_func, problem.kind)(problem.model, problem.episodes, problem.loss, *inner)
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
