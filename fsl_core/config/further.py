"""The further sources that a recipe judges on: what it leaves out is as in the run's own test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fsl_core.config.document import Document, KeyPath, read_document, read_value, set_key
from fsl_core.config.options import Component
from fsl_core.config.sections import ON
from fsl_core.config.shipped import find_recipe
from fsl_core.errors import RecipeError

SIZES = ("n_way", "n_shot", "n_query")
SAID = "--on"


def complete_further(
    document: Document, sections: Any, chosen: Mapping[KeyPath, Component]
) -> None:
    """Write out ways, shots, queries and label of each source of `evaluate.on`.

    RecipeError if two sources have one label.
    """
    labels: list[str] = []
    sizes = _sizes(sections, chosen)
    for i, source in enumerate(sections.evaluate.on):
        _take(source, sizes, chosen, (*ON, i))
        source.label = source.label or source.name
        if source.label in labels:
            found = f"{document.where((*ON, i))}: a second source called {source.label!r}"
            raise RecipeError(f"{found}. `label:` with another word")
        labels.append(source.label)


def _sizes(sections: Any, chosen: Mapping[KeyPath, Component]) -> dict[str, int]:
    """Those of the run's own test episodes, as far as options name them."""
    path: KeyPath = ("episodes",)
    own = sections.episodes
    for option in chosen[path].lists:  # of a mixture all sources are alike
        while own is not None and option in type(own).model_fields:
            own = next(iter(getattr(own, option)), None)
    found = {key: getattr(sections.evaluate, key) or getattr(own, key, None) for key in SIZES}
    return {key: size for key, size in found.items() if size is not None}


def _take(
    source: Any, sizes: Mapping[str, int], chosen: Mapping[KeyPath, Component], path: KeyPath
) -> None:
    """Set the sizes that a source, or one that it lists, does not state."""
    for key, size in sizes.items():
        if key in type(source).model_fields and key not in source.model_fields_set:
            setattr(source, key, size)
    for option in chosen[path].lists:
        for i, part in enumerate(getattr(source, option)):
            _take(part, sizes, chosen, (*path, option, i))


def judge_on(document: Document, given: Sequence[str]) -> None:
    """Replace `evaluate.on` by the one source that texts describe.

    document: the recipe of a run, in which every section is written out.
    given: a recipe, whose test episodes are meant, or the label of a source of the document; and
        texts KEY=VALUE, which change these, or else the document's own test episodes. With another
        `name`, such texts are all of it.
    RecipeError for texts that mean nothing.
    """
    changes = [text for text in given if "=" in text]
    named = [text for text in given if "=" not in text]
    if len(named) > 1:
        raise RecipeError(f"{SAID} {named[1]}: a second recipe. One recipe, and texts KEY=VALUE")
    source = Document(SAID, {"source": _source(document, named)}, {(): SAID})
    for text in changes:
        key, _, value = text.partition("=")
        if not all(key.split(".")):
            raise RecipeError(f"{SAID} {text}: not a change of episodes. Such as name=mnist")
        found = read_value(value, f"{SAID} {key}")
        if key == "name" and not named and found != source.data["source"].get("name"):
            source.data["source"] = {}
        set_key(source, ("source", *key.split(".")), found, SAID, f"{SAID} {text}")
    document.data["evaluate"]["on"] = [source.data["source"]]
    document.places = {p: at for p, at in document.places.items() if p[: len(ON)] != ON}
    document.places[ON] = SAID


def _source(document: Document, named: list[str]) -> dict[str, Any]:
    """The test episodes that are meant, without the changes."""
    if not named:
        return _test_episodes(document) or {}
    labelled = {source["label"]: source for source in document.data["evaluate"].get("on", [])}
    if named[0] in labelled:
        return dict(labelled[named[0]])
    found = _test_episodes(read_document(find_recipe(Path(named[0]))))
    if found is None:
        raise RecipeError(f"{SAID} {named[0]}: no `episodes:` there. A recipe of one run")
    return found


def _test_episodes(document: Document) -> dict[str, Any] | None:
    """The episodes of a recipe, in the sizes of its test; None if it has no such section."""
    wanted, episodes = document.data.get("evaluate"), document.data.get("episodes")
    of_test = wanted if isinstance(wanted, dict) else {}
    sizes = {key: of_test[key] for key in SIZES if of_test.get(key) is not None}
    return _resized(episodes, sizes) if isinstance(episodes, dict) else None


def _resized(part: Any, sizes: Mapping[str, Any]) -> Any:
    if isinstance(part, dict):
        return {k: sizes[k] if k in sizes else _resized(v, sizes) for k, v in part.items()}
    return [_resized(entry, sizes) for entry in part] if isinstance(part, list) else part
