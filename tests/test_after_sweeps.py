"""The benchmarks that read a finished study: their examples, derived by hand."""

import doctest
from types import ModuleType

import pytest

from benchmarks import advice, kept


@pytest.mark.parametrize("module", [advice, kept], ids=["advice", "kept"])
def test_examples(module: ModuleType) -> None:
    """Each has one at least, and it holds."""
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
