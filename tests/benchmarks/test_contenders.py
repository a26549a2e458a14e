"""Peers and we compute the same meta-gradient, and one who does not is found out. Peers not
installed are skipped, saying so."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from benchmarks import contenders, gradients, ours, problems
from benchmarks.peers import BASELINES, LIBRARIES, NAMES, meta_gradient_of, torch_func_vmap
from benchmarks.problems import Problem
from benchmarks.race import Disagreement, LeftOut, check_agreement
from benchmarks.settings import Settings
from fsl_core.testing.tiny import double_precision

PROBLEMS: dict[str, Callable[[], Problem]] = {
    "sinusoid": lambda: problems.sinusoid(tasks=3),
    "one step": lambda: problems.omniglot(tasks=2, channels=4, n_query=2),
    "two steps": lambda: problems.omniglot(tasks=2, steps=2, channels=4, n_query=2),
    "published": lambda: problems.published(tasks=2, channels=4),
    "fully connected": lambda: problems.omniglot_fc(tasks=2),
    "centroid": lambda: problems.centroid(tasks=2, channels=4, n_query=2),
}


@pytest.fixture(params=PROBLEMS)
def problem(request: pytest.FixtureRequest) -> Iterator[Problem]:
    with double_precision():
        try:
            made = PROBLEMS[request.param]().to(torch.float64)
        except LeftOut as reason:
            pytest.skip(str(reason))
        yield made


@pytest.mark.parametrize("name", [*LIBRARIES, *BASELINES])
def test_peers_agree_with_us_in_float64(problem: Problem, name: str):
    try:
        theirs = meta_gradient_of(name, problem)
    except LeftOut as reason:
        pytest.skip(f"{NAMES[name]}: {reason}")
    own = ours.prepare(problem.learner, problem.episodes, problem.loss, ours.EXECUTIONS[0])
    computed = [torch.from_dlpack(g) for g in theirs()]
    found = check_agreement({"ours": [g.clone() for g in own()], name: computed}, 1e-9)
    assert found.keys() == {name}
    assert max(float(g.abs().max()) for g in computed) > 1e-3, (
        "a vanishing gradient would agree with anything"
    )


def test_a_second_call_gives_the_same(problem: Problem):
    """Contenders are called many times: nothing may add up, and no weight may move."""
    found = contenders.contenders(problem, slow_to_start=False, processes=True)[0]
    assert len(found) > 1
    for name, work in found.items():
        first = [torch.from_dlpack(g).clone() for g in work()]
        again = [torch.from_dlpack(g) for g in work()]
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), name


def test_a_first_order_contender_is_found_out():
    try:
        problem = PROBLEMS["one step"]()
    except LeftOut as reason:
        pytest.skip(str(reason))
    exact = meta_gradient_of("torch_func", problem)()
    with pytest.raises(Disagreement, match="first order"):
        check_agreement(
            {"exact": exact, "first order": _first_order(problem)}, gradients.FLOAT32_LIMIT
        )


def _first_order(problem: Problem) -> list[torch.Tensor]:
    model = problem.model
    total = [torch.zeros_like(p) for p in model.parameters()]
    for support, query, _ in problem.episodes.unbatch():
        weights = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
        loss = problem.loss(torch.func.functional_call(model, weights, (support.x,)), support.y)
        steps = torch.autograd.grad(loss, list(weights.values()))
        fast = {
            n: (w - problem.inner_lr * g).detach().requires_grad_()
            for (n, w), g in zip(weights.items(), steps, strict=True)
        }
        query_loss = problem.loss(torch.func.functional_call(model, fast, (query.x,)), query.y)
        of_task = torch.autograd.grad(query_loss, list(fast.values()))
        total = [t + g / len(problem.episodes.id) for t, g in zip(total, of_task, strict=True)]
    return total


def test_the_peers_network_has_our_weights_and_gives_our_numbers(problem: Problem):
    assert all(
        torch.equal(a, b)
        for a, b in zip(problem.model.parameters(), problem.learner.parameters(), strict=True)
    )
    x = problem.episodes.query.x[0]
    if problem.kind == "maml":
        learner = problem.learner
        expected = learner.adapter.head(learner.backbone(x))
    else:
        expected = problem.learner.backbone(x)
    torch.testing.assert_close(problem.model(x), expected, rtol=1e-12, atol=1e-12)


def test_weights_are_copied_between_equal_shapes_only():
    with pytest.raises(AssertionError, match=r"\(3, 2\) is not \(2, 2\)"):
        problems.same_weights(nn.Linear(2, 3), nn.Linear(2, 2))


def test_operations_are_those_counted_by_hand():
    """Nearest centroid: a pass over every image and a backward pass of twice that, but for the
    input of the first layer."""
    problem = problems.centroid(tasks=1, channels=8, n_query=15)
    forward = [
        2 * 80 * side * side * 9 * width * 8 for side, width in ((28, 1), (14, 8), (7, 8), (3, 8))
    ]
    expected = 3 * sum(forward) - forward[0]
    assert gradients._operations(problem) == pytest.approx(expected, rel=0.01)


def test_vmap_alone_is_left_out_where_it_is_wrong():
    model = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2))
    with pytest.raises(
        LeftOut, match="second-order gradients through affine BatchNorm are wrong under vmap"
    ):
        torch_func_vmap.maml(model, None, None, 0.1, 1)


def test_ours_with_fewer_digits_is_found_by_its_name():
    try:
        problem = PROBLEMS["one step"]().to(torch.float32)
    except LeftOut as reason:
        pytest.skip(str(reason))
    entered, left_out = {}, {}
    contenders.enter_fewer_digits(problem, entered, left_out)
    assert {*entered, *left_out} == {"bf16, workers of ours", "bf16, processes of ours"}
    exact = contenders.contender(problem, "ours, loop")
    for name, work in entered.items():  # none where the processor has no such units
        found = [g.clone() for g in contenders.contender(problem, name)()]
        assert all(torch.equal(a, b) for a, b in zip(found, work(), strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(found, exact(), strict=True))


def test_processes_give_the_bits_of_workers(monkeypatch: pytest.MonkeyPatch):
    try:
        problem = PROBLEMS["one step"]().to(torch.float32)
    except LeftOut as reason:
        pytest.skip(str(reason))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    workers, processes = (
        contenders.contender(problem, f"ours, {name}") for name in ("workers", ours.PROCESSES)
    )
    assert all(torch.equal(a, b) for a, b in zip(workers(), processes(), strict=True))


def test_no_gpu_is_said():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(LeftOut, match="no GPU here"):
        gradients.gpu(Settings(quick=True))
