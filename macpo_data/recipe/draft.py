"""A recipe before validation: access to raw values for the validation rules."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from macpo_data.recipe.data import DataBase
from macpo_data.recipe.generation import Select
from macpo_data.recipe.recipe import Recipe
from macpo_data.recipe.section import Section
from macpo_data.recipe.training import Spin


class Draft:
    """The raw values of a recipe, of which any may be missing or of a wrong type."""

    def __init__(self, values: dict[str, Any]) -> None:
        """`values` are as a person wrote them; those that matter here are looked up in them."""
        self.values = values
        self.method = values.get("method", "macpo")

    def read(self, section: str, key: str, default: Any = None) -> Any:
        """A section's value, or the default where it is not written, or there is no section."""
        part = self.values.get(section)
        return part.get(key, default) if isinstance(part, dict) else default

    def changed(self, path: str) -> bool:
        """Whether a key of data, select, spin or no section is written and not its default."""
        part, _, key = path.rpartition(".")
        sections: dict[str, type[Section]] = {"select": Select, "data": DataBase, "spin": Spin}
        sections[""] = Recipe
        given = self.values.get(part) if part else self.values
        default: Any = sections[part].model_fields[key].default
        return isinstance(given, dict) and bool(given.get(key, default) != default)

    @cached_property
    def agents(self) -> dict[Any, dict[str, Any]]:
        """The agents that are sections, by name."""
        agents = self.values.get("agents")
        both = agents.items() if isinstance(agents, dict) else ()
        return {name: agent for name, agent in both if isinstance(agent, dict)}

    @cached_property
    def teachers(self) -> list[Any]:
        """Names of the teachers."""
        return [name for name, agent in self.agents.items() if agent.get("role") == "teacher"]

    @cached_property
    def students(self) -> list[Any]:
        """Names of the students."""
        return [name for name, agent in self.agents.items() if agent.get("role") == "student"]

    @cached_property
    def in_mixture(self) -> list[str]:
        """Names in the mixture's layers, each once."""
        layers = items(self.read("mixture", "layers"))
        return list(dict.fromkeys(str(name) for layer in layers for name in items(layer)))

    @cached_property
    def judges(self) -> dict[str, dict[str, Any]]:
        """The judges that are sections, by their dotted path."""
        judges = {"judge": self.values.get("judge"), "eval.judge": self.read("eval", "judge")}
        return {path: judge for path, judge in judges.items() if isinstance(judge, dict)}

    def no_teacher(self, path: str, name: Any) -> str:
        """That a name is none of a teacher."""
        return f"{path}: {name!r} is no teacher (those are: {', '.join(map(str, self.teachers))})"


def items(value: Any) -> list[Any]:
    """A list as it is; anything else is an empty one."""
    return value if isinstance(value, list) else []
