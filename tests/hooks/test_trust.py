"""One-file plugins that a run names: imported where this user has run those very bytes."""

from __future__ import annotations

import importlib.util
import json
import os
import py_compile
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import fsl_core as fsl
from fsl_core.config.recipe import read_recipe
from fsl_core.errors import PluginError
from fsl_core.hooks import trust
from fsl_core.hooks.loader import Loaded, load
from fsl_core.hooks.trust import (
    GRANTED,
    LIST,
    PluginSource,
    RecordedPlugins,
    TrustedPlugins,
    granting,
)
from fsl_core.runs.opening import open_run, prepare_run

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user who has run nothing yet."""
    monkeypatch.setenv("FSL_STATE", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A plugin that leaves a mark where it runs."""
    file = tmp_path / "received" / "strange.py"
    file.parent.mkdir()
    file.write_text("from pathlib import Path\nPath('ran').touch()\n")
    return file


def admit(*files: Path | str, digest: str = "", trusted: bool = False, **options) -> Loaded:
    """Load what a run would that names these files."""
    recorded = RecordedPlugins("run", dict.fromkeys(map(str, files), digest), trusted)
    return load(entry_points=False, recorded=recorded, **options)


def refused(*files: Path | str, **options) -> str:
    with pytest.raises(PluginError) as raised:
        admit(*files, **options)
    assert not Path("ran").exists()
    return str(raised.value)


def test_what_this_user_has_run_is_imported_and_told(strange: Path):
    load(entry_points=False, files=[strange])
    Path("ran").unlink()
    told: list[str] = []
    digest = PluginSource.read(strange).sha256
    recorded = RecordedPlugins("run", {str(strange): digest}, tell=told.append)
    loaded = load(entry_points=False, recorded=recorded)
    assert Path("ran").exists()
    assert loaded.files == {str(strange): digest}
    assert told == [f"imported {strange}, a one-file plugin that run names"]


def test_what_is_not_known_is_refused_with_its_reason(strange: Path):
    assert refused(strange) == (
        f"run: one-file plugin {str(strange)!r} is not known to you. Read it, then --trust-plugins "
        "to run it, or --no-plugin strange to go without it"
    )


def test_what_has_changed_since_it_was_run_is_refused(strange: Path):
    harmless = strange.read_text().replace("touch", "exists")
    evil = strange.read_text()
    strange.write_text(harmless)
    load(entry_points=False, files=[strange])
    digest = PluginSource.read(strange).sha256
    strange.write_text(evil)
    assert "strange.py' has changed since you ran it. Read it" in refused(strange, digest=digest)


def test_the_digest_that_a_record_claims_proves_nothing(strange: Path):
    refused(strange, digest=PluginSource.read(strange).sha256)


def test_a_known_file_that_is_not_that_of_the_run_is_imported_and_said(strange: Path):
    load(entry_points=False, files=[strange])
    told: list[str] = []
    recorded = RecordedPlugins("run", {str(strange): "0" * 64}, tell=told.append)
    load(entry_points=False, recorded=recorded)
    assert told[0].endswith("; it has changed since")


@pytest.mark.parametrize(
    "path", ["received/strange.py", "./received/strange.py", "~/strange.py", "", "/a\0b.py"]
)
def test_paths_that_mean_another_file_in_every_folder_are_refused(strange: Path, path: str):
    load(entry_points=False, files=[strange])
    Path("ran").unlink()
    assert f"one-file plugin {path!r} is not an absolute path. " in refused(path)
    assert "is not an absolute path" in refused(path, trusted=True)


def test_a_file_that_is_missing(strange: Path, tmp_path: Path):
    load(entry_points=False, files=[strange])
    strange.unlink()
    Path("ran").unlink()
    for path in (strange, strange / "below.py"):
        assert "is missing. --plugins-dir with a folder that has it, or --no-" in refused(path)
    (tmp_path / "circle.py").symlink_to(tmp_path / "circle.py")
    assert "circle.py' is missing. " in refused(tmp_path / "circle.py")


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.py")
    assert "cannot be read (not a regular file)" in refused(tmp_path / "pipe.py", trusted=True)
    (tmp_path / "folder.py").mkdir()
    assert "cannot be read (Is a directory)" in refused(tmp_path / "folder.py", trusted=True)
    with (tmp_path / "long.py").open("wb") as file:
        file.truncate(trust.LARGEST + 1)
    assert "cannot be read (more than " in refused(tmp_path / "long.py", trusted=True)


def test_all_refusals_come_together(strange: Path, tmp_path: Path):
    lines = refused(strange, tmp_path / "absent.py").splitlines()
    assert ["is not known to you" in lines[0], "is missing" in lines[1]] == [True, True]


class TestTricks:
    def test_a_symlink_in_the_place_of_a_known_file(self, strange: Path, tmp_path: Path):
        known = tmp_path / "known.py"
        known.write_text("")
        load(entry_points=False, files=[known])
        known.unlink()
        known.symlink_to(strange)
        assert "is not known to you" in refused(known)

    def test_a_symlink_to_a_known_file_is_that_file(self, strange: Path, tmp_path: Path):
        """Its `__file__` is the known path, so that it reads nothing from beside the symlink."""
        known = tmp_path / "known.py"
        known.write_text("from pathlib import Path\nPath('ran').write_text(__file__)\n")
        load(entry_points=False, files=[known])
        link = strange.parent / "link.py"
        link.symlink_to(known)
        admit(link)
        assert Path("ran").read_text() == str(known)
        admit(strange.parent / ".." / "known.py")
        assert Path("ran").read_text() == str(known)

    def test_a_file_that_changes_after_it_was_read(self, strange: Path):
        evil = strange.read_text()
        strange.write_text("x = 1\n")
        source = PluginSource.read(strange)
        strange.write_text(evil)
        assert source.load().x == 1
        assert not Path("ran").exists()

    @pytest.mark.parametrize("recorded", [False, True])
    def test_bytecode_beside_a_known_file(self, strange: Path, tmp_path: Path, recorded: bool):
        known = tmp_path / "known.py"
        known.write_text("x = 1\n")
        load(entry_points=False, files=[known])
        planted = importlib.util.cache_from_source(str(known))
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        py_compile.compile(str(strange), planted, invalidation_mode=unchecked)
        admit(known) if recorded else load(entry_points=False, files=[known])
        assert not Path("ran").exists()

    def test_another_way_to_write_a_letter_is_another_file(self, tmp_path: Path):
        composed, decomposed = tmp_path / "\u00e9.py", tmp_path / "e\u0301.py"
        composed.write_text("")
        load(entry_points=False, files=[composed])
        decomposed.write_text("open('ran', 'w')\n")
        assert "is not known to you" in refused(decomposed)

    def test_the_same_bytes_elsewhere_are_not_known(self, strange: Path, tmp_path: Path):
        """A plugin may read files beside it."""
        load(entry_points=False, files=[strange])
        Path("ran").unlink()
        copied = tmp_path / "strange.py"
        copied.write_bytes(strange.read_bytes())
        assert "is not known to you" in refused(copied)

    def test_names_that_a_terminal_obeys_are_written_out(self):
        assert "'/x/\\x1b[2Jy.py' is missing" in refused("/x/\x1b[2Jy.py")
        assert "--no-plugin 'a; rm b'" in refused("/x/a; rm b.py")


class TestWhatTheUserSays:
    def test_trusted_once_is_known_from_then_on(self, strange: Path):
        admit(strange, trusted=True)
        assert Path("ran").exists()
        admit(strange)

    def test_a_file_that_is_named_takes_the_place_of_the_recorded_one(
        self, strange: Path, tmp_path: Path
    ):
        mine = tmp_path / "mine" / "strange.py"
        mine.parent.mkdir()
        mine.write_text("")
        loaded = admit(strange, "/gone/strange.py", files=[mine])
        assert [*loaded.files] == [str(mine)]
        assert not Path("ran").exists()

    @pytest.mark.parametrize("path", ["/gone/strange.py", "strange.py", None])
    def test_what_is_left_out_is_not_asked_for(
        self, strange: Path, path: str | None, monkeypatch: pytest.MonkeyPatch
    ):
        loaded = admit(path or strange, no_plugin=["strange"])
        monkeypatch.setenv("FSL_DISABLED_PLUGINS", "strange")
        admit(path or strange)
        found = next(p for p in loaded.plugins if p.name == "strange")
        assert (found.status, found.reason) == ("disabled", "--no-plugin")
        assert not Path("ran").exists()
        assert not loaded.files

    def test_an_empty_list_of_plugins_means_none(
        self, strange: Path, monkeypatch: pytest.MonkeyPatch
    ):
        load(entry_points=False, files=[strange])
        Path("ran").unlink()
        monkeypatch.setenv("FSL_LOAD_PLUGINS", "")
        loaded = admit(strange, trusted=True)
        assert next(p for p in loaded.plugins if p.name == "strange").reason == "FSL_LOAD_PLUGINS"
        assert not Path("ran").exists()
        load(entry_points=False, files=[strange])  # the command line names it
        assert Path("ran").exists()
        Path("ran").unlink()
        monkeypatch.setenv("FSL_LOAD_PLUGINS", "maml")  # of those that are installed
        admit(strange)
        assert Path("ran").exists()

    def test_processes_of_a_sweep_may_import_what_it_was_given(
        self, strange: Path, state: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setenv("FSL_LOAD_PLUGINS", "")
        with granting({str(strange): PluginSource.read(strange).sha256}):
            admit(strange)
            assert Path("ran").exists()
            assert not state.exists()
            Path("ran").unlink()
            strange.write_text(strange.read_text() + "\n")
            assert "has changed since you ran it" in refused(strange)
        assert GRANTED not in os.environ
        monkeypatch.setenv(GRANTED, "nonsense")
        monkeypatch.delenv("FSL_LOAD_PLUGINS")
        assert "is not known to you" in refused(strange)

    def test_processes_of_a_sweep_find_no_modules_in_the_current_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        (tmp_path / "platformdirs.py").write_text("print('planted')")
        command = [sys.executable, "-m", "platformdirs"]
        for variable in ("PYTHONSAFEPATH", "PYTHONPATH"):
            monkeypatch.delenv(variable, raising=False)
        for first, ran in (("/usr/bin", False), (str(tmp_path), True)):
            monkeypatch.setattr(sys, "path", [first, *sys.path])
            with granting({}):
                said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            assert ("planted" in said) == ran
        assert "PYTHONSAFEPATH" not in os.environ


class TestTheList:
    def test_only_the_user_can_read_and_write_it(self, strange: Path, state: Path):
        load(entry_points=False, files=[strange])
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in state.iterdir()} == {0o600}
        again = (state / LIST).stat()
        load(entry_points=False, files=[strange])
        assert (state / LIST).stat().st_ino == again.st_ino  # nothing new, so nothing written

    @pytest.mark.parametrize("place", ["", LIST])
    def test_it_does_not_count_where_others_could_write(
        self, strange: Path, state: Path, place: str
    ):
        load(entry_points=False, files=[strange])
        Path("ran").unlink()
        (state / place).chmod(0o777)
        message = f"is not known to you ({state / place} is ignored: others can write to it). Read"
        assert message in refused(strange)
        (state / place).chmod(0o700)
        moved = (state / place).rename(state.parent / "moved")
        (state / place).symlink_to(moved)
        assert message in refused(strange)

    def test_of_another_owner_it_does_not_count(
        self, strange: Path, state: Path, monkeypatch: pytest.MonkeyPatch
    ):
        load(entry_points=False, files=[strange])
        Path("ran").unlink()
        monkeypatch.setattr(os, "geteuid", lambda: state.stat().st_uid + 1)
        assert "is ignored" in refused(strange)

    @pytest.mark.parametrize(
        "content",
        [
            *("", "null", "[]", "{}", "[" * 100_000, "\udcff", '{"plugins": 3}'),
            '{"plugins": [1, null, [], {}]}',
            '{"plugins": [{"path": 1, "sha256": []}]}',
        ],
        ids=range(9),
    )
    def test_damaged_it_knows_nothing_and_is_written_again(
        self, strange: Path, state: Path, content: str
    ):
        state.mkdir(mode=0o700)
        (state / LIST).write_bytes(content.encode(errors="surrogateescape"))
        assert "is not known to you" in refused(strange)
        if TrustedPlugins().hint:
            return  # unreadable: a person looks at it first
        load(entry_points=False, files=[strange])
        admit(strange)

    def test_where_it_cannot_be_written_that_is_said(self, strange: Path, state: Path):
        state.write_text("a file")
        loaded = load(entry_points=False, files=[strange])
        (plugin,) = (p for p in loaded.plugins if p.name == "strange")
        assert "cannot be remembered as yours (" in plugin.notes[0]
        assert "Commands on its runs need --trust-plugins" in plugin.notes[0]
        admit(strange, trusted=True)

    def test_it_does_not_grow_without_end(self, strange: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(trust, "KEPT", 3)
        for i in range(5):
            strange.write_text(f"x = {i}\n")
            load(entry_points=False, files=[strange])
        assert len(TrustedPlugins().digests(str(strange))) == 3
        admit(strange)


def test_runs_and_predictors_ask_alike(
    toy_recipe: Path, toy_plugins: Loaded, strange: Path, tmp_path: Path
):
    recipe = read_recipe(toy_recipe, toy_plugins.catalogue)
    environment = {"recipe": "toy", "plugin_files": toy_plugins.files}
    prepare_run(tmp_path / "mine", recipe, environment)
    with open_run(tmp_path / "mine", CPU, write=False) as run:
        assert run.plugin_files == toy_plugins.files

    named = {"plugin_files": {**toy_plugins.files, str(strange): ""}}
    prepare_run(tmp_path / "theirs", recipe, {"recipe": "toy", **named})
    metadata = {"classes": ["a", "b"], "found": [1, 1], "invert": False, "recipe": "", **named}
    save_file(
        {"support": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)},
        tmp_path / "kept",
        {"fsl-predictor": json.dumps(metadata)},
    )
    with (
        pytest.raises(PluginError, match=r"theirs/environment.json: one-file plugin .* not known"),
        open_run(tmp_path / "theirs", CPU, write=False),
    ):
        pass
    with pytest.raises(PluginError, match="environment.json: one-file plugin .* is not known"):
        fsl.adapt_to_folder(tmp_path / "theirs", tmp_path)
    with pytest.raises(PluginError, match=r"kept: one-file plugin .* is not known to you"):
        fsl.load_predictor(tmp_path / "kept")
    assert not Path("ran").exists()
    with open_run(tmp_path / "theirs", CPU, write=False, trust_plugins=True):
        assert Path("ran").exists()


def test_a_run_of_an_earlier_version_names_files_without_digests(
    toy_recipe: Path, toy_plugins: Loaded, tmp_path: Path
):
    environment = {"recipe": "toy", "plugin_files": [*toy_plugins.files]}
    prepare_run(tmp_path / "run", read_recipe(toy_recipe, toy_plugins.catalogue), environment)
    with open_run(tmp_path / "run", CPU, write=False) as run:
        assert run.plugin_files == toy_plugins.files
