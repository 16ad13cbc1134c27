"""The names of all results of all shipped recipes and studies, as recorded once.

A name holds a fingerprint of what decides the result. So a name that changes makes everybody's
results of that kind new. Where that is meant, record the names anew with
`python tests/golden_names.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from macpo_data.loading.load import load_recipe, shipped
from macpo_data.methods.registry import make_plan
from macpo_data.recipe.recipe import Recipe
from macpo_data.recipe.section import digest
from macpo_run.sweep import study

PATH = Path(__file__).parent / "golden" / "names.json"
LISTED = ("hh_helpful", "moaa_quickstart", "quickstart")  # with all names, to see what changed
PARTS = ("d1", "d2", "test", "probe")


def recipes() -> Iterator[tuple[str, Recipe]]:
    """Every shipped recipe, and every variant of every shipped study with its first seed."""
    for name in shipped():
        yield name, load_recipe(name)
    for name in study.shipped():
        variants = study.variants(study.load_study(name, {}))
        for variant in variants:
            if variant.recipe.seed == variants[0].recipe.seed:
                yield f"{name}: {variant.name}", variant.recipe


def result_names(recipe: Recipe) -> list[str]:
    """All names that follow from a recipe alone, without a store, a model or the network."""
    plan = make_plan(recipe)
    makers = [policy for step in plan.steps if (policy := step.makes)]
    read = [policy for step in plan.steps for policy in step.policies]
    judges = {"judge": recipe.judge, "eval.judge": recipe.eval.judge}
    return [
        plan.prompts_name,
        plan.reward_name,
        *map(plan.name, plan.steps),
        *(
            plan.sample_name(policy, part, "0")
            for policy in dict.fromkeys([*makers, *read])
            for part in PARTS
        ),
        *(f"{path} {digest(judge.identity())}" for path, judge in judges.items() if judge),
        f"recipe {digest(recipe.identity())}",
    ]


def golden_names() -> dict[str, object]:
    """What is recorded: a digest of each recipe's names, and all names of a few recipes."""
    names = {name: result_names(recipe) for name, recipe in recipes()}
    return {
        "digests": {name: digest(each) for name, each in names.items()},
        "names": {name: names[name] for name in LISTED},
    }


if __name__ == "__main__":
    PATH.write_text(json.dumps(golden_names(), indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"wrote {PATH}")
