"""`macpo init`: writes a recipe to start from."""

from __future__ import annotations

import shlex
from pathlib import Path

from macpo_data.errors import MacpoError
from macpo_run.commands.run_options import DatasetOptions
from macpo_run.terminal.lines import say, say_aside, say_next


def init(recipe: str, to: Path, full: bool, data: DatasetOptions | None = None) -> None:
    """Copy a shipped recipe, to be edited, and beside it a schema for editors.

    Args:
        recipe: its name.
        to: where to write it.
        full: every key, with what it means.
        data: a person's own preference data, in the place of the recipe's.

    Raises:
        MacpoError: there is no such recipe, or the file exists already; the data cannot be used.
    """
    from macpo_data.loading.write import SCHEMA_FILE, recipe_copy, schema_text
    from macpo_data.store.store import atomic, check_output

    if to.exists():
        raise MacpoError(f"{to} exists already; move it away, or choose another name with --to")
    schema = to.with_name(SCHEMA_FILE)
    text = recipe_copy(recipe, full) if data is None else _on_own_data(recipe, full, to, data)
    texts = {schema: schema_text(), to: text}
    for path in texts:
        check_output(path)
    for path, text in texts.items():
        with atomic(path) as temporary:
            temporary.write_text(text, "utf-8")
    say(f"wrote {to}, and {schema} for editors")
    named = f" --recipe {shlex.quote(str(to) if to.parent.name else f'./{to}')}"
    named = "" if to == Path("macpo.yaml") else named
    say_next(f"macpo {'status' if data is None else 'run --dry-run'}{named}")


def _on_own_data(recipe: str, full: bool, to: Path, options: DatasetOptions) -> str:
    """A recipe's YAML on a person's own data, which was checked as it will stand.

    Raises:
        MacpoError: the data cannot be used, or the recipe does not go with them.
    """
    from macpo_data.loading.load import check_text, load_settings
    from macpo_data.loading.own_data import recipe_on
    from macpo_data.loading.write import full_text
    from macpo_run.own_data import look_at, run_name

    columns = load_settings(options.settings(None)).columns
    data = look_at(options.dataset(), columns, to.parent)
    for line in data.account.lines():
        say_aside(line)
    place, sizes = options.place, data.section
    about = (
        f"The recipe {recipe} on {place}: {data.prompts:,} prompts with a usable pair.",
        f"What is not written here is at macpo's default; `macpo init {recipe} --data {place} "
        "--full` writes every key, with what it means.",
    )
    text = recipe_on(recipe, data.section, run_name(place), about)
    loaded = check_text(str(to), text)
    counts = ", ".join(f"{part} {sizes[part]['count']:,}" for part in ("d1", "d2", "test"))
    say(f"{place}: {data.prompts:,} prompts with a usable pair; drawn by prompt: {counts}")
    bases = [name for name, agent in loaded.agents.items() if agent.base.startswith("world:")]
    if bases:
        say_aside(
            f"the bases of {', '.join(bases)} are the embedded world's, tiny and for a look at how "
            "it goes; name models of your own in agents.NAME.base, or begin with `macpo init "
            "hh_helpful --data ...`"
        )
    return full_text(loaded, text) if full else text
