"""Processes that compute a meta-gradient together, as a long `fsl run` does it by itself.

    python -m benchmarks.ranks FOLDER

computes that of FOLDER/problem.pt at each line that it reads. The first process answers with a
line, once FOLDER/gradients.pt holds the result.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path
from tempfile import mkdtemp

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import fsl_core as fsl
from benchmarks.race import LeftOut
from fsl_core.builtin.uniform import Uniform
from fsl_core.engine.environment import STORE
from fsl_core.engine.execution import Execution, Precision
from fsl_core.engine.memory import keep_freed_memory
from fsl_core.engine.meta_gradient import MetaGradient
from fsl_core.engine.ranks import join
from fsl_core.episode import Loss

PROBLEM, GRADIENTS = "problem.pt", "gradients.pt"


class Processes:
    """As many as torch has threads here. A call gives the gradient of each trained parameter.

    Raises LeftOut where a run would start none: with one core, or a GPU.
    """

    def __init__(
        self, learner: fsl.Learner, episodes: fsl.Episode, loss: Loss, precision: Precision
    ):
        count = torch.get_num_threads()
        if count == 1 or next(learner.parameters()).is_cuda:
            raise LeftOut("processes: one core, or a GPU")
        folder = Path(mkdtemp(prefix="fsl-ranks-"))
        torch.save((learner, episodes, loss, precision), folder / PROBLEM)
        self._gradients = folder / GRADIENTS
        self._ranks = [_started(rank, count, folder) for rank in range(count)]
        weakref.finalize(self, _end, self._ranks, folder)

    def __call__(self) -> list[Tensor]:
        for rank in self._ranks:
            assert rank.stdin is not None
            rank.stdin.write(b"\n")
            rank.stdin.flush()
        assert self._ranks[0].stdout is not None
        if not self._ranks[0].stdout.readline():
            raise RuntimeError("a process ended that computes a meta-gradient with others")
        found: list[Tensor] = torch.load(self._gradients)
        return found


def _started(rank: int, count: int, folder: Path) -> subprocess.Popen[bytes]:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    settings = {name: str(number) for name, number in place.items()}
    settings |= {"OMP_NUM_THREADS": str(count), STORE: str(folder / "store")}
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.ranks", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
        env=os.environ | settings,
    )


def _end(ranks: list[subprocess.Popen[bytes]], folder: Path) -> None:
    for rank in ranks:
        rank.communicate()  # closes its input, which ends it
    shutil.rmtree(folder)


def serve(folder: Path) -> None:
    learner, episodes, loss, precision = torch.load(folder / PROBLEM, weights_only=False)
    keep_freed_memory()  # as `fsl run` does
    ranks, parameters = join(), [p for p in learner.parameters() if p.requires_grad]
    execution = Execution(workers=ranks.count, precision=precision)
    compute = MetaGradient(learner, Uniform(), loss, execution, ranks)
    part = ranks.part(len(episodes.id))
    own = tree_map(lambda tensor: tensor[part.start : part.stop], episodes)
    for _ in sys.stdin:
        compute(own, ids=episodes.id)
        if ranks.first:
            torch.save([p.grad for p in parameters], folder / GRADIENTS)
            print(flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
