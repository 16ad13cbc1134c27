"""The pictures of a report in the documents, light and dark: docs/images/report*.png.

After a demo, `python -m benchmarks.pictures runs/quickstart/report.html` takes them anew. It needs
a chromium.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Literal

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
WIDTH, HEIGHT = 1000, 1040  # pixels: the verdict, the scores, and the first two charts
Scheme = Literal["light", "dark"]
PICTURES: dict[Scheme, str] = {"light": "report.png", "dark": "report-dark.png"}


def main(page: Path) -> None:
    """Take both."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for scheme, name in PICTURES.items():
            context = browser.new_context(
                color_scheme=scheme, viewport={"width": WIDTH, "height": HEIGHT}
            )
            tab = context.new_page()
            tab.goto(page.resolve().as_uri(), wait_until="networkidle")
            tab.screenshot(path=IMAGES / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
