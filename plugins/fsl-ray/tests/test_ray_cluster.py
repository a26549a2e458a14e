"""Runs on a cluster of Ray with two nodes on this machine.

They take minutes, most of which Ray takes to begin processes: FSL_TEST_RAY=1 has them run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import fsl_core as fsl
from fsl_core.testing import LauncherContract

ray = pytest.importorskip("ray", reason="ray is not installed")

from fsl_ray import Ray  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="needs Ray on POSIX"),
    pytest.mark.skipif(
        not os.environ.get("FSL_TEST_RAY"), reason="not run: FSL_TEST_RAY=1 begins a cluster of Ray"
    ),
]

BEGIN = """
import sys, time
from ray.cluster_utils import Cluster

size = {"object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **size})
other = cluster.add_node(num_cpus=1, resources={"other": 1}, **size)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
for word in sys.stdin:
    cluster.remove_node(other if word == "other\\n" else cluster.head_node, allow_graceful=False)
    print(word, flush=True)
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[SimpleNamespace]:
    """Two nodes of one core each: `address`, and `kill("other")`, of a program that begins them."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    quiet["RAY_health_check_period_ms"] = "1000"  # a dead node is noticed in 5 s, not in 15
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", BEGIN],
        env={**os.environ, **quiet},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as program:
        address = program.stdout.readline().strip()
        assert address, "no cluster"

        def kill(node: str) -> None:
            program.stdin.write(f"{node}\n")
            program.stdin.flush()
            program.stdout.readline()

        yield SimpleNamespace(address=address, kill=kill)
        program.stdin.close()


class TestRay(LauncherContract):
    @pytest.fixture(autouse=True)
    def _on_the_cluster(self, cluster: SimpleNamespace) -> None:
        self.address = cluster.address

    def make(self):
        return Ray(self.address)


class Words(fsl.Work):
    """Work that is any program."""

    @property
    def command(self):
        return [sys.executable, "-c", *self.arguments]


def work(folder: Path, name: str, program: str) -> Words:
    run = folder / name
    run.mkdir(parents=True)
    return Words(run, (program,))


def ended(launcher: fsl.Launcher, run: Path) -> fsl.Ended:
    deadline = time.monotonic() + 120
    while (found := launcher.poll(run)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def wait_for(*files: Path) -> None:
    deadline = time.monotonic() + 120
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_another_sweep_finds_what_goes_on_and_stops_it(cluster, tmp_path: Path):
    waiting = "import pathlib, time; pathlib.Path('begun').touch(); time.sleep(600)"
    one, never = (work(tmp_path, name, waiting) for name in ("one", "never"))
    one = Words(one.run, (f"import os; os.chdir({str(one.run)!r}); {waiting}",))
    first = Ray(cluster.address, resources={"other": 1})
    first.start([one])
    wait_for(one.run / "begun")
    first.start([never])  # waits: the one machine with that resource is taken
    first._driver._process.kill()  # as if the sweep had been killed
    with pytest.raises(fsl.FslError, match=r"launcher ray: the cluster at .* has ended\. `ray st"):
        first.poll(one.run)
    first.close()

    second = Ray(cluster.address)
    try:
        assert [second.find(work.run) for work in (one, never)] == [True, True]
        assert second.poll(one.run) is None
        second.stop([one.run, never.run])
        found = [ended(second, work.run) for work in (one, never)]
        assert found[0] == fsl.Ended(-15, "ended by SIGTERM. More memory, if nobody stopped it")
        assert found[1].reason.startswith("actor fsl-")
        assert not second.find(one.run)
    finally:
        second.close()


def test_needs_that_no_machine_meets_are_refused(cluster, tmp_path: Path):
    launcher = Ray(cluster.address, cpus=64, gpus=1, resources={"other": 1})
    try:
        wanted = r"needs 64 CPU, 1 GPU, 1 other, and no machine has it\. At most 1 CPU, 0 GPU, 1 ot"
        with pytest.raises(fsl.FslError, match=wanted):
            launcher.start([work(tmp_path, "one", "pass")])
    finally:
        launcher.close()


RECIPE = """\
episodes: {name: glyphs, n_way: 2, n_query: 1}
backbone: {name: mlp, hidden: [4]}
adapter: {name: nearest-centroid}
outer: {steps: 1000, validate_every: 0, checkpoint_every: 50}
execution: {mode: loop}
evaluate: {episodes: 2}
matrix: {seed: [0, 1]}
launcher: {name: ray}
"""

COUNTS = """\
import fsl_core as fsl


@fsl.hookimpl
def fsl_run_finished(run, result):
    with (run.directory / "ends.txt").open("a") as file:
        file.write("once")
"""


def test_runs_of_a_machine_that_dies_go_on_elsewhere(
    cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every run has its result, and was brought to its end once."""
    monkeypatch.setenv("FSL_LOAD_PLUGINS", "ray")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "fslplugin.py").write_text(COUNTS)
    words = ["sweep", "recipe.yaml", "--out", "out", "-s", f"launcher.address={cluster.address}"]
    command = [sys.executable, "-m", "fsl_core", *words]
    with (tmp_path / "told").open("w") as told:
        sweep = subprocess.Popen(command, cwd=tmp_path, stdout=told, stderr=told)
    begun = time.monotonic()
    while len(list(tmp_path.glob("out/runs/*/checkpoints/last.safetensors"))) < 2:
        assert time.monotonic() < begun + 120
        assert sweep.poll() is None, (tmp_path / "told").read_text()
        time.sleep(0.05)
    runs = list((tmp_path / "out" / "runs").iterdir())
    assert not any((run / "result.json").exists() for run in runs), "too late to kill a node"
    cluster.kill("other")
    assert sweep.wait(300) == 0, (tmp_path / "told").read_text()
    assert [(run / "ends.txt").read_text() for run in runs] == ["once", "once"]


def test_a_head_that_dies_ends_the_sweep_in_one_line(cluster, tmp_path: Path):
    one = work(tmp_path, "one", "import time; time.sleep(600)")
    launcher = Ray(cluster.address)
    try:
        launcher.start([one])
        assert launcher.poll(one.run) is None
        cluster.kill("head")
        with pytest.raises(fsl.FslError, match=r"launcher ray: (no cluster at|the cluster at).*"):
            ended(launcher, one.run)
    finally:
        launcher.close()
