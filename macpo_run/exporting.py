"""Exports a policy's answers for other evaluators, and blind sheets for people."""

from __future__ import annotations

from pathlib import Path

from macpo_data.errors import MacpoError
from macpo_data.evaluation import exports, sheets
from macpo_data.plan import Policy
from macpo_data.store.store import check_output
from macpo_run.session import Session


def export(
    run: Session,
    form: str,
    policies: list[Policy],
    against: str | None,
    prompts: Path | None,
    to: Path | None,
    redo: bool = False,
) -> list[str]:
    """Write one policy's answers for another evaluator, or a blind sheet for people.

    Returns:
        What was written, in lines.

    Raises:
        MacpoError: it is not said what, whose or where.
    """
    positive = [policy for policy in policies if policy.behavior == "positive"]
    if len(positive) != 1:
        raise MacpoError(
            f"an export is of one policy, not of {len(positive)}; name it with --agents and --round"
        )
    if to is None:
        raise MacpoError("where to? name a file with --to")
    if to.exists():
        raise MacpoError(f"{to} exists already; move it away, or name another file with --to")
    check_output(to)
    if form == "human":
        against = against or run.recipe.eval.against
        if against is None:
            raise MacpoError("a sheet compares two; name the baseline with --against")
        key = sheets.write_sheet(run.context(redo), positive[0], against, to)
        return [f"wrote  {to}", f"wrote  {key}, which keeps who is who: not for annotators"]
    if prompts is None:
        raise MacpoError(f"name the prompts of {form} with --prompts FILE")
    count, empty = exports.export(run.context(redo), positive[0], form, prompts, to)
    return [f"wrote  {to}: {count} answers of {positive[0]}, {empty} of them empty"]
