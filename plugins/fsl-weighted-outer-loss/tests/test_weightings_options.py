"""Refused options, and the parts of the gradient."""

import pytest
import torch

from fsl_weighted_outer_loss import (
    ConflictFree,
    Focal,
    GradientNorm,
    GradientSimilarity,
    LogLoss,
    Memory,
    Random,
    SoftmaxLoss,
    Uncertainty,
    WorstCase,
)
from fsl_weighted_outer_loss.geometry import GradientPart, compare

COLUMNS = {
    "backbone.blocks.0.0.weight": slice(0, 2),
    "backbone.blocks.1.0.weight": slice(2, 4),
    "backbone.blocks.1.1.scale": slice(4, 5),
    "adapter.scale": slice(5, 6),
    "adapter.head.weight": slice(6, 8),
    "adapter.head.bias": slice(8, 9),
}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: GradientSimilarity(COLUMNS, "max"),
            r"gradient-similarity: agreement: 'max'\. 'mean' or 'pairwise'",
        ),
        (
            lambda: GradientSimilarity(COLUMNS, temperature=0),
            r"gradient-similarity: temperature: 0\. A number above 0",
        ),
        (
            lambda: GradientSimilarity(COLUMNS, gradient="tail"),
            r"gradient-similarity: gradient: 'tail': no such parameter\. all, head, last-block, or a pattern over backbone.*bias",
        ),
        (
            lambda: GradientNorm({"backbone.w": slice(0, 1)}, gradient="head"),
            r"gradient-norm: gradient: 'head': no such param",
        ),
        (
            lambda: ConflictFree({"adapter.w": slice(0, 1)}, gradient="last-block"),
            r"conflict-free: gradient: 'last-block': no",
        ),
        (lambda: GradientNorm(COLUMNS, alpha=-1), r"gradient-norm: alpha: -1\. A number from 0"),
        (lambda: GradientNorm(COLUMNS, floor=0), r"gradient-norm: floor: 0\. A number above 0"),
        (
            lambda: ConflictFree(COLUMNS, "nash"),
            r"conflict-free: method: 'nash'\. 'min-norm' or 'pcgrad'",
        ),
        (lambda: SoftmaxLoss("soft"), r"softmax-loss: first: 'soft'\. 'hard' or 'easy'"),
        (lambda: SoftmaxLoss(temperature=-1), r"softmax-loss: temperature: -1\. A number above 0"),
        (lambda: Focal(-0.5), r"focal: gamma: -0\.5\. A number from 0"),
        (lambda: WorstCase(1.5), r"worst-case: share: 1\.5\. A number of at most 1"),
        (lambda: LogLoss(0), r"log-loss: steps: 0\. "),
        (lambda: LogLoss(floor=0.0), r"log-loss: floor: 0\.0\. A number above 0"),
        (lambda: Uncertainty(3, of="class"), r"uncertainty: of: 'class'\. 'loss' or 'task'"),
        (lambda: Memory(3, "mean"), r"memory: score: 'mean'\. 'loss', 'progress' or 'sum'"),
        (lambda: Memory(3, decay=1), r"memory: decay: 1\. A number below 1"),
        (lambda: Memory(3, temperature=0), r"memory: temperature: 0\. A number above 0"),
        (lambda: Random("cauchy"), r"random: distribution: 'cauchy'\. 'normal' or 'simplex'"),
    ],
)
def test_refused_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


FLAT = {"backbone.weight": slice(0, 4), "backbone.bias": slice(4, 6)}
NAMED = {
    "backbone.conv.weight": slice(0, 4),
    "backbone.last.a": slice(4, 6),
    "backbone.last.b": slice(6, 7),
}
ELEVEN = {"backbone.layers.1.w": slice(0, 4), "backbone.layers.10.w": slice(4, 6)}


@pytest.mark.parametrize(
    ("columns", "part", "expected"),
    [
        (COLUMNS, "all", [slice(0, 9)]),
        (COLUMNS, "head", [slice(6, 9)]),
        (COLUMNS, "last-block", [slice(2, 5)]),
        (COLUMNS, "*.weight", [slice(0, 4), slice(6, 8)]),
        (COLUMNS, "adapter.scale", [slice(5, 6)]),
        (FLAT, "last-block", [slice(0, 6)]),
        (NAMED, "last-block", [slice(4, 7)]),
        (ELEVEN, "last-block", [slice(4, 6)]),
        (dict(reversed(ELEVEN.items())), "last-block", [slice(0, 4)]),
    ],
)
def test_parts(columns, part, expected):
    assert GradientPart(columns, part, "x").slices == expected


def test_a_part_reads_its_columns():
    matrix = torch.arange(18.0).view(2, 9)
    assert torch.equal(
        GradientPart(COLUMNS, "*.weight", "x")(matrix), matrix[:, [0, 1, 2, 3, 6, 7]]
    )
    assert GradientPart(COLUMNS, "all", "x")(matrix).data_ptr() == matrix.data_ptr()  # no copy


def test_comparison_at_the_ends_of_single_precision():
    cosines, lengths = compare(torch.tensor([[3e38, 3e38], [1e-37, -1e-37], [0.0, 0.0]]))
    torch.testing.assert_close(
        cosines, torch.diag(torch.tensor([1.0, 1.0, 0.0])), rtol=0, atol=1e-6
    )
    assert lengths[0] == 1
    assert lengths[2] == 0
