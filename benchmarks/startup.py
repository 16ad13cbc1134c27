"""How long `macpo --help` and `macpo status` take, as whole processes."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.rows import row, seconds


def main() -> None:
    """Eleven runs each, after one that warms the file cache; a bare interpreter beside them."""

    def run(*args: str) -> None:
        subprocess.run([sys.executable, *args], check=True, capture_output=True)

    medians = {}
    for name, args in {
        "python -c pass": ["-c", "pass"],
        "macpo --help": ["-m", "macpo", "--help"],
        "macpo status": ["-m", "macpo", "status", "--recipe", "quickstart"],
    }.items():
        run(*args)
        medians[name] = seconds(lambda args=args: run(*args), 11)  # type: ignore[misc]
    result = ", ".join(f"{name} {value:.2f} s" for name, value in medians.items())
    row("CLI start-up, median of 11", result, "python -m benchmarks.startup")


if __name__ == "__main__":
    main()
