"""speed.md says what was reached, what was missed and by how much, and why a figure is absent."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report import write_report

MACHINE = {"processor": "AMD EPYC", "threads": 2, "torch": "2.13", "gpu": "none"}
INTEL = MACHINE | {"processor": "Intel(R) Xeon(R) Processor"}


def a_race(times: float, **others) -> dict:
    return {
        "seconds": {"ours, loop": 0.001, "higher": 0.001 * times},
        "ratios": {"ours, loop": [1.0, 1.0, 1.0], "higher": [times, times - 0.5, times + 0.5]},
        "ours": "ours, loop",
        "peer": "higher",
        "left_out": {"learn2learn": "needs a compiler", "easyfsl": "offers no maml"},
        "agreement": {"float64": {"higher": 2e-15}},
        "rounds": 9,
        "machine": MACHINE,
        **others,
    }


def page(results: dict, out: Path) -> str:
    of_all = {name: r if isinstance(r, list) else [r] for name, r in results.items()}
    return write_report(of_all, out).read_text("utf-8")


def row(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(f"| {start}"))


def test_targets_are_reached_or_missed(tmp_path: Path):
    text = page({"sinusoid": a_race(60.0), "omniglot": a_race(1.5)}, tmp_path)
    assert row(text, "sinusoid MAML").endswith(
        "higher | 50 x | 60.00 x (ours, loop) | 59.50 to 60.50 | AMD EPYC | reached |"
    )
    assert row(text, "Omniglot-shaped MAML").endswith(
        "higher | 2 x | 1.50 x (ours, loop) | 1.00 to 2.00 | AMD EPYC | missed: 75% of it |"
    )
    assert row(text, "`nearest-centroid`").endswith("| not measured |")
    assert (tmp_path / "speed-ratios.svg").is_file()


def test_an_interval_that_holds_the_target_decides_nothing(tmp_path: Path):
    text = page({"omniglot": a_race(2.1)}, tmp_path)
    assert row(text, "Omniglot-shaped MAML").endswith("| not decided by the interval |")
    assert "Why what is missed is missed" not in text
    assert "- **the same with 5 inner steps**: of some 70 ms" in page(
        {"omniglot-5": a_race(1.2)}, tmp_path
    )


def test_who_is_left_out_is_said_with_the_reason(tmp_path: Path):
    text = page(
        {"sinusoid": a_race(60.0), "gpu": {"skipped": "no GPU here", "machine": MACHINE}}, tmp_path
    )
    assert "- learn2learn is left out: needs a compiler" in text
    assert "offers no maml" not in text
    assert "Not measured: no GPU here." in text
    assert row(text, "Omniglot-shaped MAML, 32 tasks, on a GPU").endswith("| no GPU here |")


def test_without_any_library_the_target_says_so(tmp_path: Path):
    alone = a_race(60.0) | {"peer": None}
    assert row(page({"sinusoid": alone}, tmp_path), "sinusoid MAML").endswith(
        "| no library: not installed here |"
    )


def test_the_roofline_is_the_share_of_the_best_rate(tmp_path: Path):
    rates = {"operations": 4e9, "operations_per_second": {"ours, loop": 30e9, "higher": 15e9}}
    text = page(
        {"omniglot": a_race(2.0, **rates, machine_rates={"product": 100e9, "convolution": 120e9})},
        tmp_path,
    )
    assert "ours, loop reaches 25.0% of the machine's best rate" in text
    assert "product: 100 GFLOP/s; convolution: 120 GFLOP/s" in text


def test_growth_has_a_table_and_a_plot_for_each_size(tmp_path: Path):
    axis = {
        "label": "ways",
        "sizes": [2, 4],
        "seconds": {"ours, loop": [0.001, 0.004]},
        "exponents": {"ours, loop": 2.0},
    }
    start = {"tasks": 4, "steps": 1, "n_way": 5, "channels": 32, "n_query": 5}
    text = page(
        {"growth": {"axes": {"n_way": axis}, "start": start, "left_out": {}, "machine": MACHINE}},
        tmp_path,
    )
    assert "| ours, loop | 1 | 4 | 2.00 |" in text
    assert "![Cost and ways](speed-growth-n-way-amd-epyc.svg)" in text
    assert (tmp_path / "speed-growth-n-way-amd-epyc.svg").is_file()


def test_plots_are_the_same_bytes_each_time(tmp_path: Path):
    for name in ("one", "two"):
        page({"sinusoid": a_race(60.0)}, tmp_path / name)
    assert (tmp_path / "one" / "speed-ratios.svg").read_bytes() == (
        tmp_path / "two" / "speed-ratios.svg"
    ).read_bytes()


def test_a_smoke_test_says_that_its_figures_mean_nothing(tmp_path: Path):
    text = page({"sinusoid": a_race(60.0, quick=True)}, tmp_path)
    assert "the figures below mean nothing" in text
    assert "mean nothing" not in page({"sinusoid": a_race(60.0)}, tmp_path)


def test_a_loop_that_was_stopped_is_more_than_its_seconds(tmp_path: Path):
    runs = {
        "ours": a_training(20.0, 500, True),
        "learn2learn": a_training(90.0, 450, False),
    }
    found = a_race(1.0) | {
        "ours": "ours",
        "peer": "learn2learn",
        "ratios": {"learn2learn": [4.5, 4.5, 4.5]},
        "runs": runs,
        "at_least": True,
        "recipe": "omniglot/5w1s-maml-small",
        "accuracy": 0.95,
        "every": 50,
        "tuned": 12.0,
    }
    text = page({"accuracy-omniglot": found}, tmp_path)
    assert "| learn2learn | more than 90.0 | 450 | 200 | 0.910 |" in text
    assert "| ours | 20.0 | 500 | 40 | 0.910 |" in text
    target = row(text, "training to 0.95 on Omniglot")
    assert target.endswith("| 4 x | more than 4.50 x (ours) | one run | AMD EPYC | reached |")


def a_training(seconds: float, steps: int, reached: bool) -> dict:
    figures = {"seconds": seconds, "steps": steps, "accuracy": 0.91, "reached": reached}
    return {**figures, "execution": "loop, 2 workers: fastest"}


def test_two_machines_stand_side_by_side(tmp_path: Path):
    here = a_race(20.0, machine=INTEL, measured="2026-11-26", others=0.74)
    text = page({"sinusoid": [a_race(60.0, others=0.02), here]}, tmp_path)
    assert "- Measured on: processor AMD EPYC, threads 2, torch 2.13, gpu none." in text
    assert "- Measured on: processor Intel(R) Xeon(R) Processor, threads 2," in text
    rows = [line for line in text.splitlines() if line.startswith("| sinusoid MAML")]
    assert [row.split(" | ")[-2:] for row in rows] == [
        ["AMD EPYC", "reached |"],
        ["Intel Xeon", "missed: 40% of it, beside other work |"],
    ]
    assert "\nAMD EPYC, 2 threads.\n" in text
    told = "Intel Xeon, 2 threads, 2026-11-26, beside other work, which kept 0.7 cores busy."
    assert f"\n{told}\n" in text
    assert text.count("## Sinusoid MAML\n") == 1
