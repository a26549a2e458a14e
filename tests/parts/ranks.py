"""Runs recipes by several numbers of processes, all of them forked from one that has imported torch.

A program: `python -m tests.parts.ranks JOBS OUT 1 2 5:3`, with JOBS a list of {"name", "recipe",
"plugins"} or {"name", "call"}; 5:3 are the first three of them by five processes. It writes what
each number of ranks came to, by name.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

Job = dict[str, Any]


def forked(jobs: list[Job], count: int) -> dict[str, Any]:
    """What each job came to on the first of `count` ranks."""
    with tempfile.TemporaryDirectory() as folder:
        store, out = Path(folder) / "store", Path(folder) / "out"
        children = []
        for rank in range(count):
            if not (child := os.fork()):
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)}
                os.environ |= {"FSL_RANKS_STORE": str(store)}
                _end(jobs, out if rank == 0 else None)
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert not any(codes), codes
        return json.loads(out.read_text())


def _end(jobs: list[Job], out: Path | None) -> None:
    code = 1
    try:
        found = {job["name"]: _done(job) for job in jobs}
        if out is not None:
            out.write_text(json.dumps(found))
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(code)


def _done(job: Job) -> Any:
    from fsl_core.engine.ranks import join

    if "call" in job:
        module, _, name = job["call"].partition(":")
        return getattr(importlib.import_module(module), name)()
    import torch

    import fsl_core as fsl
    from fsl_core.data.cache import tensors_digest

    torch.set_default_dtype(getattr(torch, job.get("dtype", "float32")))
    before = join().sent
    try:
        run = fsl.run(job["recipe"], plugins=job.get("plugins", ()), progress=False)
    except fsl.FslError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    weights = run.learner.state_dict()
    kept = {k: v for k, v in weights.items() if isinstance(v, torch.Tensor)}
    return {
        "digest": tensors_digest(kept),
        "weights": [float(v.double().sum()) for v in kept.values()],
        "score": run.score,
        "losses": [record["loss"] for record in run.metrics if "seconds" in record],
        "episode_set": run.result["episode_set"],
        "execution": run.result["execution"],
        "notes": run.notes,
        "sent": join().sent - before,
        "parameters": sum(p.numel() * p.element_size() for p in run.learner.parameters()),
    }


def main(jobs: str, out: str, *counts: str) -> None:
    import torch

    import fsl_core.api
    import fsl_core.hooks.loader  # noqa: F401

    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # imports torch._dynamo: a second
    torch.set_num_threads(1)
    given = json.loads(Path(jobs).read_text())
    found = {}
    for count, _, few in (each.partition(":") for each in counts):
        found[count] = forked(given[: int(few)] if few else given, int(count))
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
