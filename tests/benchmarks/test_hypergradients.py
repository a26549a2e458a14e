"""The page of estimates of the meta-gradient, from stored measurements and sweeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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


def sweep(folder: Path, p: float) -> Path:
    """A finished sweep of two estimates with two seeds."""
    folder.mkdir()
    (folder / "sweep.csv").write_text(
        "estimate,accuracy,interval,training_seconds\n"
        "unrolled,0.5,0.01,80.0\nfirst-order,0.6875,0.02,61.2\n"
    )
    (folder / "differences.csv").write_text(
        f"estimate,minus,difference,interval,p_holm\nfirst-order,unrolled,0.1875,0.03,{p}\n"
    )
    for seed in (1, 0):
        for label, accuracy in (("unrolled", 0.5), ("first-order", 0.625)):
            run = folder / "runs" / f"{seed}-{label}"
            run.mkdir(parents=True)
            result = {
                "recipe": f"hypergradients-omniglot: seed {seed}, {label}",
                "episodes_name": "omniglot",
                "accuracy": accuracy + 0.125 * seed,
                "seed": seed,
                "steps": 300,
                "episodes": 200,
                "episode_set": "abc",
            }
            (run / "result.json").write_text(json.dumps(result))
    return folder


def test_what_was_measured_is_on_the_page(tmp_path: Path):
    (tmp_path / "hypergradients.json").write_text(json.dumps(MEASURED))
    main(["page", "--out", str(tmp_path)])
    text = (tmp_path / "hypergradients.md").read_text()
    assert "| estimate | T = 5 (2) |" in text
    assert "| first-order | 0.850 ± 0.098 |" in text
    assert "| implicit | 0.250 s, 3 MiB |" in text
    assert "Trained runs" not in text


@pytest.mark.parametrize(("p", "told"), [(0.01, "**+0.188 ± 0.030**"), (0.2, "+0.188 ± 0.030")])
def test_scores_of_a_sweep_are_stored_and_on_the_page(tmp_path: Path, p: float, told: str):
    folder = sweep(tmp_path / "sweep", p)
    main(["scores", str(folder), "--out", str(tmp_path)])
    stored = json.loads((tmp_path / "hypergradients.json").read_text())["scores"]["omniglot"]
    assert (stored["steps"], stored["episodes"], stored["episode_set"]) == (300, 200, "abc")
    main(["page", "--out", str(tmp_path)])
    text = (tmp_path / "hypergradients.md").read_text()
    assert "300 outer steps, 200 test episodes" in text
    assert "| unrolled | 0.500 ± 0.010 | 0.500, 0.625 |  |" in text
    assert f"| first-order | 0.688 ± 0.020 | 0.625, 0.750 | {told} |" in text
