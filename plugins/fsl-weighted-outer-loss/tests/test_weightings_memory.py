"""What `memory` remembers, by hand, and what it refuses."""

import numpy as np
import pytest
import torch

import fsl_core as fsl
from fsl_weighted_outer_loss import Memory, Uncertainty

STEPS = [([2, 0], [1.0, 0.5]), ([1, 2], [0.2, 3.0]), ([2, 2], [1.0, 2.0]), ([0, 2], [0.1, 0.4])]


def softmax(scores):
    return np.exp(scores) / np.exp(scores).sum()


def given(ids, losses):
    return fsl.Outcomes(torch.tensor(losses, dtype=torch.float64), ids=torch.tensor(ids))


def by_hand(score, decay, temperature):
    state, weights = {}, []
    for ids, losses in STEPS:
        means = {
            i: np.mean([loss for j, loss in zip(ids, losses, strict=True) if j == i]) for i in ids
        }
        before = {i: state.get(i, 0.0 if score == "sum" else means[i]) for i in ids}
        for i in means:
            state[i] = (
                before[i] + means[i]
                if score == "sum"
                else decay * before[i] + (1 - decay) * means[i]
            )
        scores = [means[i] / before[i] if score == "progress" else state[i] for i in ids]
        weights.append(softmax(np.array(scores) / temperature))
    return state, weights


@pytest.mark.parametrize("score", ["loss", "progress", "sum"])
@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_weights_and_state_by_hand(score, decay):
    memory = Memory(4, score, decay, temperature=0.7).double()
    state, expected = by_hand(score, decay, 0.7)
    for (ids, losses), weights in zip(STEPS, expected, strict=True):
        np.testing.assert_allclose(memory.weigh(given(ids, losses)).numpy(), weights, rtol=1e-9)
    np.testing.assert_allclose(
        memory.remembered[:3].numpy(), [state[i] for i in range(3)], rtol=1e-9
    )
    assert memory.met.tolist() == [True, True, True, False]


def test_what_is_remembered_follows_the_task_not_its_place():
    first, second = Memory(4).double(), Memory(4).double()
    for ids, losses in STEPS:
        weights, mirrored = (
            first.weigh(given(ids, losses)),
            second.weigh(given(ids[::-1], losses[::-1])),
        )
        assert weights.tolist() == pytest.approx(mirrored.flip(0).tolist(), abs=1e-12)


def test_state_survives_a_state_dict():
    memory, fresh = Memory(4).double(), Memory(4).double()
    for ids, losses in STEPS:
        memory.weigh(given(ids, losses))
    fresh.load_state_dict(memory.state_dict())
    assert torch.equal(
        memory.weigh(given([1, 3], [1.0, 2.0])), fresh.weigh(given([1, 3], [1.0, 2.0]))
    )


def test_a_task_that_was_solved_and_fails_again_stays_finite():
    memory = Memory(2, "progress").double()
    memory.weigh(given([0, 1], [0.0, 1.0]))
    assert memory.weigh(given([0, 1], [1.0, 1.0])).tolist() == pytest.approx([1, 0])


@pytest.mark.parametrize("make", [Memory, lambda tasks: Uncertainty(tasks, of="task")])
def test_tasks_that_no_one_announced(make):
    message = r"(memory|uncertainty): tasks \[1, 4\]\. Numbers in 0 \.\. 3: the episodes say that they have 4 tasks"
    with pytest.raises(fsl.DataError, match=message):
        make(4).weigh(given([1, 4], [1.0, 1.0]))


@pytest.mark.parametrize("make", [Memory, lambda tasks: Uncertainty(tasks, of="task")])
def test_episodes_without_a_finite_set_of_tasks(make):
    with pytest.raises(
        ValueError,
        match=r"no finite set of tasks to tell apart\. Episodes that do, such as sinusoid",
    ):
        make(None)
