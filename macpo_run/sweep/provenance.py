"""Provenance of a study's results: commit, package versions, engines, seeds."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from macpo_data.outside import parse_json
from macpo_data.recipe.recipe import Recipe
from macpo_data.world.bases import VERSION
from macpo_data.world.named import WORLD


@dataclass(frozen=True)
class Provenance:
    """What a reader needs to know to make a study's results again."""

    recipes: str  # digest of all variants' recipes
    commit: str | None  # of the program that wrote the table; None where nobody recorded it
    packages: dict[str, list[str]]  # those that made the steps: every version of each
    engines: list[str]
    worlds: list[str]  # bases of the embedded world

    def lines(self, seeds: Iterable[int]) -> list[str]:
        """For the top of a table."""
        packages = ", ".join(f"{name} {' and '.join(of)}" for name, of in self.packages.items())
        lines = [
            f"seeds: {', '.join(map(str, seeds))}; digest of all recipes: {self.recipes}",
            f"made with: {packages}; engine {', '.join(self.engines)}",
        ]
        if self.commit:
            lines.append(f"table written by macpo at commit {self.commit}")
        if self.worlds:
            lines.append(f"the embedded world, version {VERSION}: {', '.join(self.worlds)}")
        return lines


def provenance(
    recipes: Iterable[Recipe], digest: str, manifests: Iterable[Mapping[str, Any]]
) -> Provenance:
    """Sum up where results come from.

    Args:
        recipes: of all variants.
        digest: of them all.
        manifests: of the steps that were made; one from elsewhere may say less.
    """
    recipes = list(recipes)
    packages: dict[str, set[str]] = {}
    for manifest in manifests:
        python = {"Python": manifest["python"]} if "python" in manifest else {}
        for name, version in (manifest.get("versions", {}) | python).items():
            packages.setdefault(name, set()).add(version)
    bases = {agent.base for recipe in recipes for agent in recipe.agents.values()}
    return Provenance(
        digest,
        commit(),
        {name: sorted(versions) for name, versions in packages.items()},
        sorted({recipe.engine.name for recipe in recipes}),
        sorted(base for base in bases if base.startswith(WORLD)),
    )


class VcsInfo(BaseModel):
    """Where in a repository pip found a package."""

    commit_id: str | None = None


class DirectUrl(BaseModel):
    """What pip records of a package that is of no index: https://peps.python.org/pep-0610/."""

    vcs_info: VcsInfo = VcsInfo()


def commit() -> str | None:
    """The commit of this program: that of the clone it runs from, else as pip recorded it.

    None where it was installed from an index. It ends in -dirty where the clone has changes.
    """
    clone = Path(str(resources.files("macpo_data"))).parent
    if (clone / ".git").exists():
        command = ["git", "-C", str(clone), "describe", "--always", "--dirty", "--abbrev=40"]
        try:
            # No tag is near enough to say what a hash says.
            result = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True)
        except OSError:
            return None
        return result.stdout.strip() or None
    try:
        text = distribution("macpo").read_text("direct_url.json") or "{}"
        return DirectUrl.model_validate(parse_json(text)).vcs_info.commit_id
    except (PackageNotFoundError, ValueError):  # pydantic's own error is a ValueError
        return None
