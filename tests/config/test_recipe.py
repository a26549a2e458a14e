"""Every kind of wrong recipe, each with its line; all faults of a recipe in one report."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from fsl_core.assembly.parts import build_part
from fsl_core.config.recipe import read_recipe
from fsl_core.config.sections import recipe_schema
from fsl_core.config.yaml_text import to_yaml
from fsl_core.errors import RecipeError
from fsl_core.hooks.loader import Loaded


def faults(path: Path, loaded: Loaded, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        read_recipe(path, loaded.catalogue, overrides)
    return [fault.replace(str(path), "toy.yaml") for fault in caught.value.faults]


def changed(path: Path, old: str, new: str) -> Path:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return path


def test_a_right_recipe_is_complete(toy_recipe: Path, toy_plugins: Loaded):
    recipe = read_recipe(toy_recipe, toy_plugins.catalogue)
    assert recipe.sections.outer.optimizer.lr == 0.01
    assert recipe.sections.episodes.spread == 0.3
    assert recipe.resolved()["outer"]["weighting"] == {"name": "uniform", "reduction": "mean"}


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (
            "n_way: 3",
            "n_wya: 3",
            "toy.yaml:2: episodes.n_wya: episodes 'blobs' has no such option. Did you mean 'n_way'?",
        ),
        (
            "n_way: 3",
            "n_way: many",
            'toy.yaml:2: episodes.n_way: found "many". Expected a valid integer',
        ),
        ("n_way: 3", "n_way: 0", "toy.yaml:2: episodes.n_way: found 0. Expected greater than 0"),
        (
            "blobs",
            "blob",
            "toy.yaml:2: episodes.name: episodes 'blob': no installed plugin offers it. Did you mean 'blobs'?",
        ),
        (
            "mlp",
            "mpl",
            "toy.yaml:3: backbone.name: backbone 'mpl': no installed plugin offers it. Did you mean 'mlp'?",
        ),
        (
            "nearest-centroid",
            "hypermaml",
            "toy.yaml:4: adapter.name: adapter 'hypermaml': no installed plugin offers it. pip install fsl-hypermaml",
        ),
        (
            "{name: adam, lr: 0.01}",
            "adam",
            "toy.yaml:6: outer.optimizer: no `name`. A mapping such as {name: adam}",
        ),
        (
            "lr: 0.01",
            "lr: fast",
            'toy.yaml:6: outer.optimizer.lr: found "fast". Expected a valid number',
        ),
        (
            "steps: 12",
            "stepps: 12",
            "toy.yaml:8: outer.stepps: section 'outer' has no such option. Did you mean 'steps'?",
        ),
        (
            "steps: 12",
            "steps: yes",
            'toy.yaml:8: outer.steps: found "yes". Expected a valid integer',
        ),
        (
            "evaluate:",
            "evalute:",
            "toy.yaml:13: evalute: the recipe has no such option. Did you mean 'evaluate'?",
        ),
        ("seed: 0", "seed: -1", "toy.yaml:1: seed: found -1. Expected greater than or equal to 0"),
        (
            "seed: 0",
            "requires: [fsl-absent>=2]",
            "toy.yaml:1: requires.0: fsl-absent is not installed. pip install 'fsl-absent>=2'",
        ),
        (
            "seed: 0",
            "requires: ['fsl-core>=9']",
            "toy.yaml:1: requires.0: fsl-core 0.1.0 is installed. pip install --upgrade 'fsl-core>=9'",
        ),
        (
            "seed: 0",
            "requires: ['?']",
            "toy.yaml:1: requires.0: '?' is not a requirement. A distribution with a version range, such as fsl-maml>=0.1",
        ),
        (
            "seed: 0",
            "seed: [",
            "toy.yaml:3: YAML syntax: expected ',' or ']', but got '<scalar>'. Well-formed YAML",
        ),
        (
            "seed: 0",
            "expect: {accuracy: 0.9}",
            "toy.yaml:1: expect.accuracy: found 0.9. Expected an object",
        ),
        (
            "seed: 0",
            "expect: {accuracy: {valu: 0.9, tolerance: 0.1}}",
            "toy.yaml:1: expect.accuracy.valu: section 'expect.accuracy' has no such option. "
            "Did you mean 'value'?",
        ),
    ],
)
def test_each_fault_has_its_line(
    toy_recipe: Path, toy_plugins: Loaded, old: str, new: str, fault: str
):
    assert fault in faults(changed(toy_recipe, old, new), toy_plugins)


def test_two_faults_come_together_in_file_order(toy_recipe: Path, toy_plugins: Loaded):
    changed(toy_recipe, "steps: 12", "stepps: 12")
    changed(toy_recipe, "n_way: 3", "n_wya: 3")
    found = faults(toy_recipe, toy_plugins)
    assert [fault.split(": ")[1] for fault in found] == [
        "episodes.n_wya",
        "outer.steps",
        "outer.stepps",
    ]
    assert found[1] == "toy.yaml:5: outer.steps: absent. It is required"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "toy.yaml:1: empty. "),
        ("- a", "toy.yaml:1: a list. "),
        ("a: 1\na: 2", "toy.yaml:2: YAML syntax: found duplicate key"),
    ],
)
def test_a_file_that_is_no_recipe(toy_recipe: Path, toy_plugins: Loaded, text: str, fault: str):
    toy_recipe.write_text(text)
    assert faults(toy_recipe, toy_plugins)[0].startswith(fault)


def test_an_absent_or_binary_file(tmp_path: Path, toy_plugins: Loaded):
    with pytest.raises(
        RecipeError, match="none.yaml: No such file or directory. A recipe file in YAML"
    ):
        read_recipe(tmp_path / "none.yaml", toy_plugins.catalogue)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="binary.yaml: not UTF-8 text"):
        read_recipe(tmp_path / "binary.yaml", toy_plugins.catalogue)


def test_an_absent_section(toy_recipe: Path, toy_plugins: Loaded):
    changed(toy_recipe, "adapter: {name: nearest-centroid}\n", "")
    assert faults(toy_recipe, toy_plugins) == ["toy.yaml:1: adapter: absent. It is required"]


def test_overrides_are_typed_by_the_same_schema(toy_recipe: Path, toy_plugins: Loaded):
    recipe = read_recipe(
        toy_recipe,
        toy_plugins.catalogue,
        ["outer.optimizer.lr=1e-3", "backbone.hidden=[4, 4]", "outer.weighting.name=uniform"],
    )
    assert recipe.sections.outer.optimizer.lr == 0.001
    assert list(recipe.sections.backbone.hidden) == [4, 4]
    assert faults(toy_recipe, toy_plugins, "outer.steps=2.5") == [
        "-s outer.steps: found 2.5. Expected a valid integer"
    ]
    assert faults(toy_recipe, toy_plugins, "outer.stps=2") == [
        "-s outer.stps: section 'outer' has no such option. Did you mean 'steps'?"
    ]
    assert faults(toy_recipe, toy_plugins, "seed") == [
        "-s seed: not an override. key.path=value, such as adapter.inner_lr=0.1"
    ]
    assert faults(toy_recipe, toy_plugins, "seed.x=1") == [
        "-s seed.x=1: seed is a number. A key path through mappings"
    ]


def test_a_section_can_be_replaced(toy_recipe: Path, toy_plugins: Loaded):
    recipe = read_recipe(
        toy_recipe, toy_plugins.catalogue, ["adapter={name: explodes, at_progress: 1.0}"]
    )
    assert recipe.chosen["adapter",].name == "explodes"


def test_a_number_with_an_exponent_is_a_number(toy_recipe: Path, toy_plugins: Loaded):
    assert (
        read_recipe(
            changed(toy_recipe, "lr: 0.01", "lr: 1e-3"), toy_plugins.catalogue
        ).sections.outer.optimizer.lr
        == 0.001
    )


def test_a_constructor_that_refuses_is_named_with_its_line(toy_recipe: Path, toy_plugins: Loaded):
    recipe = read_recipe(toy_recipe, toy_plugins.catalogue, ["adapter={name: picky, even: 3}"])
    with pytest.raises(RecipeError, match="-s adapter: even: 3. A multiple of two"):
        build_part(recipe, ("adapter",))


def test_the_schema_accepts_what_the_reader_accepts(toy_plugins: Loaded):
    schema = recipe_schema(toy_plugins.catalogue)
    assert {"episodes", "backbone", "adapter", "outer"} <= set(
        schema["else"]["required"]
    )  # unless a matrix has them
    assert "blobs" in str(schema["properties"]["episodes"])
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert {"exclude", "baseline"} == set(schema["properties"]["matrix"]["properties"])


def required(path: Path, loaded: Loaded, listed: str, origin: str) -> list[str]:
    """`requires` of the resolved recipe, whose adapter comes from a plugin of this origin."""
    recipe = read_recipe(path, loaded.catalogue, [f"requires={listed}"])
    adapter = replace(recipe.chosen["adapter",], origin=origin)
    return replace(recipe, chosen={**recipe.chosen, ("adapter",): adapter}).resolved()["requires"]


def test_a_resolved_recipe_requires_what_it_uses(toy_recipe: Path, toy_plugins: Loaded):
    origin = f"pluggy {metadata.version('pluggy')}"
    major, minor, *_ = metadata.version("pluggy").split(".")
    needed = f"pluggy>={major}.{minor}"
    assert required(toy_recipe, toy_plugins, "[]", origin) == [needed]
    assert required(toy_recipe, toy_plugins, "[torch, pluggy]", origin) == ["torch", needed]
    assert required(toy_recipe, toy_plugins, "['pluggy>1']", origin) == ["pluggy>1"]
    assert required(toy_recipe, toy_plugins, "[]", "fsl-core 0.1.0") == []
    assert required(toy_recipe, toy_plugins, "[]", "/some folder/fslplugin.py") == []
    assert required(toy_recipe, toy_plugins, "[]", "fsl-absent 0.1.0") == []


@pytest.mark.parametrize(
    ("version", "least"),
    [("0.1.3", "0.1"), ("1.20", "1.20"), ("0.2.0.dev1", "0.2.0.dev1"), ("0.2rc1+x", "0.2rc1")],
)
def test_the_range_holds_the_installed_version(
    toy_recipe: Path,
    toy_plugins: Loaded,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    least: str,
):
    monkeypatch.setattr("fsl_core.config.recipe.metadata.version", lambda name: version)
    (text,) = required(toy_recipe, toy_plugins, "[]", f"fsl-x {version}")
    assert text == f"fsl-x>={least}"
    assert Requirement(text).specifier.contains(version, prereleases=True)


def test_a_resolved_recipe_keeps_the_written_order(toy_recipe: Path, toy_plugins: Loaded):
    toy_recipe.write_text("""\
evaluate: {n_query: 2, episodes: 10}
adapter: {temperature: 2.0, name: nearest-centroid}
outer: {steps: 3, optimizer: {lr: 0.01, name: adam}}
requires: ['torch>1, != 1.2']
backbone: {name: mlp}
episodes: {name: blobs}
""")
    recipe = read_recipe(toy_recipe, toy_plugins.catalogue)
    resolved = recipe.resolved()
    sections = ["evaluate", "adapter", "outer", "requires", "backbone", "episodes"]
    assert list(resolved) == [*sections, "seed", "execution", "expect"]
    assert list(resolved["adapter"])[:2] == ["temperature", "name"]
    assert list(resolved["outer"])[:2] == ["steps", "optimizer"]
    assert list(resolved["outer"]["optimizer"])[:3] == ["lr", "name", "betas"]
    assert list(resolved["evaluate"])[:3] == ["n_query", "episodes", "seed"]
    toy_recipe.write_text(to_yaml(resolved))
    again = read_recipe(toy_recipe, toy_plugins.catalogue).resolved()
    assert again == resolved
    assert to_yaml(again) == toy_recipe.read_text()
