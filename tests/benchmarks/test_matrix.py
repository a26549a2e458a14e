"""The table of a finished sweep, from files like those that `fsl sweep` writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.matrix import table

SWEEP = """\
adapter,outer.weighting,accuracy,interval,seed_sd,seeds,rank,adaptation_seconds,training_seconds,episode_set,failed,error
maml,uniform,0.8,0.02,0.01,0 1,3.0,0.010,9,a,0,
maml,focal,0.7,0.02,0.01,0 1,4.0,0.030,9,a,0,
ridge,uniform,0.9,0.01,0.01,0 1,1.0,0.002,9,a,0,
ridge,focal,0.81,0.01,0.01,0 1,2.0,0.002,9,a,0,
picky,uniform,,,,,,,,,2,the loss is nan
picky,focal,0.79,0.01,0.01,0 1,5.0,0.002,9,a,0,
"""
DIFFERENCES = """\
adapter,outer.weighting,minus,difference,interval,p,p_holm,wins,ties,losses,episodes,seeds
maml,focal,"maml, uniform",-0.1,0.01,1e-9,1e-8,1,0,9,10,0 1
ridge,uniform,"maml, uniform",0.1,0.01,1e-9,1e-8,9,0,1,10,0 1
ridge,focal,"maml, uniform",0.01,0.02,0.04,0.12,5,0,5,10,0 1
picky,focal,"maml, uniform",-0.01,0.02,0.04,0.12,5,0,5,10,0 1
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "glyphs"
    folder.mkdir()
    (folder / "sweep.csv").write_text(SWEEP)
    (folder / "differences.csv").write_text(DIFFERENCES)
    return folder


def test_better_worse_and_failed_cells_are_told(sweep: Path):
    text = table(sweep)
    assert text.startswith(
        "`fsl sweep recipes/matrix/glyphs.yaml`, seeds 0, 1. Columns: outer.weighting.\n\n"
    )
    assert "Judged with" not in text  # tables of an earlier version
    assert "| maml | 0.800 ± 0.020 (baseline) | *0.700 ± 0.020* | 20.0 |" in text
    assert "| ridge | **0.900 ± 0.010** | 0.810 ± 0.010 | 2.0 |" in text
    assert text.endswith("| picky | failed: the loss is nan | 0.790 ± 0.010 | 2.0 |")


def test_only_settings_are_columns(sweep: Path):
    for name in ("sweep.csv", "differences.csv"):
        heading, *rows = (sweep / name).read_text().splitlines()
        lines = [f"{heading},interval_seeds", *(f"{row},0.0{i}" for i, row in enumerate(rows))]
        (sweep / name).write_text("\n".join(lines))
    assert "Columns: outer.weighting.\n" in table(sweep)
    assert "| adapter | uniform | focal | adaptation |" in table(sweep)


def test_how_cells_were_judged_is_told(sweep: Path):
    heading, *rows = SWEEP.splitlines()
    judged = [f"{heading},norm,transductive,n_query"]
    judged += [f"{row},{'transductive,True,15' if ',0 1,' in row else ',,'}" for row in rows]
    (sweep / "sweep.csv").write_text("\n".join(judged))
    told = "norm transductive, predictions depend on the other queries, 15 queries a class"
    assert f"\nJudged with {told}.\n\n| adapter |" in table(sweep)
    judged[1] = judged[1].replace("transductive,True,15", "support,False,15")
    (sweep / "sweep.csv").write_text("\n".join(judged))
    assert "\nNot judged alike: norm support, predictions do not" in table(sweep)


def test_a_sweep_that_is_not_kept_is_told(sweep: Path):
    (sweep / "differences.csv").unlink()
    with pytest.raises(SystemExit, match=r"results: sweep glyphs: no differences.csv in /"):
        table(sweep)
