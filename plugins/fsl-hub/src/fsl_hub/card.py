"""The card of a run: what it is, how well it did, under which protocol, and how to use it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TEXT = """\
# {name}

A few-shot learner trained with fsl-core: backbone `{backbone}`, adapter `{adapter}`.

**Test {metric} {figure}** (95 % interval over {episodes} episodes of `{episodes_name}`).

{table}

{note}

## Use it

Where {packages} are installed:

```sh
fsl predict hf:{address} --support LABELLED --query PICTURES
```

`LABELLED` holds a folder of pictures for each class. The classes need not be those of training. To
train on from these weights, write `start_from: hf:{address}` in a recipe.

## What is here

Weights (safetensors), the recipe, the result with the score of each test episode, thinned metrics
of training, and versions. No program: nothing here is executed when it is fetched. The figure is
believed as it was pushed; `fsl reproduce` of the recipe measures it again.
"""
NOTE = "The interval is over test episodes of one trained run, not over trainings."


def card(folder: Path, address: str, licence: str) -> str:
    """README.md of a repository: metadata in YAML for the hub, then text for people."""
    from huggingface_hub import ModelCardData

    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    recipe = _recipe(folder)
    name = address.partition("@")[0].rpartition("/")[2]
    data = ModelCardData(
        license=licence,
        library_name="fsl-core",
        tags=["few-shot-learning", "meta-learning", result["adapter"]],
        model_name=name,
        eval_results=[*_evaluations(result, recipe)],
    )
    rows = [("protocol", _protocol(result, recipe)), *_rows(result)]
    text = TEXT.format(
        name=name,
        address=address,
        backbone=result.get("backbone", "unknown"),
        adapter=result["adapter"],
        metric=result["metric"],
        figure=_figure(result),
        episodes=result["episodes"],
        episodes_name=result["episodes_name"],
        table="\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)]),
        note=NOTE,
        packages=", ".join(["fsl-core", "fsl-hub", *_plugins(recipe)]),
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


def _evaluations(result: Mapping[str, Any], recipe: Mapping[str, Any]) -> Iterator[Any]:
    """The test result, and that on every further source."""
    from huggingface_hub import EvalResult

    judged = [(_protocol(result, recipe), result)]
    judged += [(_sizes(row), row) for row in result.get("on", {}).values()]
    for protocol, row in judged:
        metric = row["metric"]
        kind = "classification" if metric == "accuracy" else "regression"
        yield EvalResult(
            task_type=f"few-shot-{kind}",
            task_name=protocol,
            dataset_type=row["episodes_name"],
            dataset_name=row["episodes_name"],
            dataset_split="test",
            metric_type=metric,
            metric_name=f"{metric}, mean over {row['episodes']} episodes",
            metric_value=round(row[metric], 6),
            metric_args={
                "interval_95": round(row["interval"], 6),
                "episodes": row["episodes"],
                "episode_set": row.get("episode_set", ""),
            },
        )


def _rows(result: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for label, row in result.get("on", {}).items():
        yield f"test {row['metric']} on {label}", _figure(row)
    for key, words in {
        "norm": "normalisation",
        "transductive": "predictions depend on other queries",
        "hypergradient": "hypergradient",
        "weighting": "weighting",
        "steps": "outer steps",
        "seed": "seed",
        "parameters": "parameters",
        "episode_set": "episode set",
    }.items():
        if key in result:
            value = result[key]
            yield words, {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


def _figure(row: Mapping[str, Any]) -> str:
    return f"{row[row['metric']]:.4f} ± {row['interval']:.4f}"


def _protocol(result: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """Such as `5-way 1-shot, 15 queries a class`, as the run was judged."""
    if told := result.get("judged_on"):
        return str(told)
    episodes, judged = recipe.get("episodes", {}), recipe.get("evaluate", {})
    names = ("n_way", "n_shot")
    sizes = {name: judged.get(name) or episodes.get(name) for name in names}
    return _sizes({**sizes, "n_query": result.get("n_query")})


def _sizes(row: Mapping[str, Any]) -> str:
    told = [f"{row[f'n_{word}']}-{word}" for word in ("way", "shot") if row.get(f"n_{word}")]
    queries = [f"{row['n_query']} queries a class"] if row.get("n_query") else []
    return ", ".join([" ".join(told), *queries] if told else queries) or "few-shot"


def _plugins(recipe: Mapping[str, Any]) -> list[str]:
    needed = [str(text) for text in recipe.get("requires", [])]
    return [f"'{text}'" for text in needed if not text.startswith("fsl-hub")]


def _recipe(folder: Path) -> dict[str, Any]:
    import yaml  # type: ignore[import-untyped]  # huggingface_hub brings it

    found = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}
