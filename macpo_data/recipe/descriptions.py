"""The documentation of each key of a section: the string below its field.

Read from the source only where it is shown; pydantic's own way of reading it costs every command a
tenth of a second.
"""

from __future__ import annotations

import ast
import inspect
from functools import cache
from itertools import pairwise
from textwrap import dedent

from pydantic import BaseModel


@cache
def meanings(section: type[BaseModel]) -> dict[str, str]:
    """By key, those of the sections that it builds on included, each in one line.

    Example:
        >>> from macpo_data.recipe.training import DPO
        >>> meanings(DPO)["beta"]
        'How strongly the policy is held to the reference.'
    """
    texts: dict[str, str] = {}
    for each in reversed(section.__mro__):
        if issubclass(each, BaseModel) and each is not BaseModel:
            texts |= _under_fields(each)
    return texts


def _under_fields(section: type[BaseModel]) -> dict[str, str]:
    (defined,) = ast.parse(dedent(inspect.getsource(section))).body
    assert isinstance(defined, ast.ClassDef)
    texts = {}
    for field, below in pairwise(defined.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            match below:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    texts[field.target.id] = " ".join(text.split())
    return texts
