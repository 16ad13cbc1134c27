"""The installed package: its version, the `macpo` command, and the recipes it comes with.

The command is in `macpo.cli`. The work is in `macpo_run`, `macpo_data` and `macpo_train`.
"""

from __future__ import annotations


def __getattr__(name: str) -> str:
    """`macpo.__version__`, read only when somebody asks: it takes a search through site-packages.

    Raises:
        AttributeError: it is any other name.
    """
    if name == "__version__":
        from importlib.metadata import version

        return version("macpo")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
