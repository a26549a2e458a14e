"""The page of estimates of the meta-gradient, from stored measurements and a run."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.hypergradients import main

MEASURED = {
    "cosine": {
        "warm_up": 5,
        "channels": 8,
        "values": {"5": {"unrolled": [1.0, 1.0], "first-order": [0.8, 0.9]}},
    },
    "cost": {
        "5": {
            name: {"seconds": 0.25, "bytes": 3 * 2**20}
            for name in (
                *("unrolled", "truncated, K = 1", "first-order", "implicit"),
                *("finite-difference", "gaussian-smoothing", "reptile", "sgld"),
            )
        }
    },
}
RESULT = {
    "episodes_name": "omniglot",
    "adapter": "maml",
    "hypergradient": "implicit",
    "seed": 3,
    "accuracy": 0.8765,
    "interval": 0.0123,
    "training_seconds": 61.2,
    "steps": 300,
}


def test_what_was_measured_is_on_the_page(tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "result.json").write_text(json.dumps(RESULT))
    (tmp_path / "hypergradients.json").write_text(json.dumps(MEASURED))
    main(["page", str(run), "--out", str(tmp_path)])
    text = (tmp_path / "hypergradients.md").read_text()
    assert "| estimate | T = 5 (2) |" in text
    assert "| first-order | 0.850 ± 0.098 |" in text
    assert "| implicit | 0.250 s, 3 MiB |" in text
    assert "| omniglot | maml | implicit | 3 | 0.876 ± 0.012 | 61 s | 300 |" in text
