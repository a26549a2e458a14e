"""Races against the peers: python -m benchmarks [--only SECTION,SECTION] [--quick] [--root DIR].

Further options: [--out DIR] [--threads N] [--budget SECONDS].
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

from benchmarks import accuracy, adaptation, data, features, gradients, growth, memory, weightings
from benchmarks.race import Disagreement, LeftOut
from benchmarks.report import write_report
from benchmarks.settings import Settings, machine, same_machine, watch_others

SECTIONS: dict[str, Callable[[Settings], dict]] = {
    "sinusoid": gradients.sinusoid,
    "omniglot": gradients.omniglot,
    "omniglot-5": gradients.omniglot_5,
    "published": gradients.published,
    "centroid": gradients.centroid,
    "features": features.features,
    "gpu": gradients.gpu,
    "gpu-published": gradients.gpu_published,
    "gpu-sinusoid": gradients.gpu_sinusoid,
    "sampling": data.sampling,
    "training": data.training,
    "accuracy-glyphs": accuracy.glyphs,
    "accuracy-omniglot": accuracy.omniglot,
    "adaptation": adaptation.adaptation,
    "weightings": weightings.weightings,
    "growth": growth.growth,
    "memory": memory.memory,
}


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    unknown = [name for name in options.only if name not in SECTIONS]
    if unknown:
        told = f"--only: no section {', '.join(unknown)}. Some of {', '.join(SECTIONS)}"
        print(told, file=sys.stderr)
        return 2
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = Settings(options.quick, options.root, 0.2 if options.quick else options.budget)
    out = options.out or Path("docs/results")
    if options.quick and not options.out:  # figures that mean nothing must not replace real ones
        out = Path(tempfile.mkdtemp(prefix="fsl-bench-"))
    kept = out / "speed.json"
    results = json.loads(kept.read_text("utf-8")) if kept.is_file() else {}
    failed = 0
    for name in options.only or SECTIONS:
        started, others = time.perf_counter(), watch_others()
        print(f"{name}: {_first_line(SECTIONS[name])}", flush=True)
        found, fault = _run(SECTIONS[name], settings)
        found |= {"machine": machine(), "quick": settings.quick}
        found |= {"measured": date.today().isoformat(), "others": others()}
        results[name] = _kept(results.get(name, []), found, fault)
        failed += fault
        print(f"    {_line(found)}   ({time.perf_counter() - started:.0f} s)", flush=True)
        out.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(write_report(results, out))
    return 1 if failed else 0


def _kept(before: list[dict], found: dict, fault: bool) -> list[dict]:
    """What a section measured on each machine; this one's takes the place of an older one.

    Why a section cannot be measured here replaces no figures, but a fault does.
    """
    measured = [result for result in before if "skipped" not in result]
    if measured and "skipped" in found and not fault:
        return measured
    return [r for r in measured if not same_machine(r["machine"], found["machine"])] + [found]


def _first_line(section: Callable[[Settings], dict]) -> str:
    return (section.__doc__ or "").partition("\n")[0]


def _run(section: Callable[[Settings], dict], settings: Settings) -> tuple[dict, bool]:
    """What a section measured, or why it could not; the second is true for a fault."""
    try:
        return section(settings), False
    except LeftOut as reason:
        return {"skipped": str(reason)}, False
    except Disagreement as reason:
        return {"skipped": f"FAILED: {reason}"}, True
    except Exception as error:
        traceback.print_exc()
        return {"skipped": f"FAILED: {type(error).__name__}: {error}"}, True


def _line(result: dict) -> str:
    if "skipped" in result:
        return result["skipped"]
    if result.get("peer"):
        value, low, high = result["ratios"][result["peer"]]
        who = f"{result['ours']} against {result['peer']}"
        return f"{who}: {value:.2f} times as fast, {low:.2f} to {high:.2f}"
    return "measured" if "ratios" not in result else "measured, with no library to compare with"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Races against the peers; writes speed.md."
    )
    parser.add_argument(
        "--only", type=lambda s: s.split(","), default=[], help=f"some of {', '.join(SECTIONS)}"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a smoke test with tiny sizes; its figures mean nothing",
    )
    parser.add_argument(
        "--root",
        type=Path,
        help="folder of Omniglot's zip files (default: FSL_DATA, else the cache)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="where speed.md goes (default: docs/results; a new folder with --quick)",
    )
    parser.add_argument(
        "--threads", type=int, help="of torch (default: torch's own, which heeds OMP_NUM_THREADS)"
    )
    parser.add_argument(
        "--budget", type=float, default=30.0, help="seconds for the rounds of one race"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
