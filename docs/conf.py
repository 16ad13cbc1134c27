"""The documents as a site: Sphinx reads the same Markdown that reads well on its own.

Its source folder is the whole repository, so that links between these pages and the results beside
them lead to the same places on the site and in a clone: `make docs`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

project, author, copyright = "macpo", "the authors of macpo", "the authors of macpo"
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "docs/images/**",
    "recipes/RESULTS.md",
    "recipes/plots/**",
    "benchmarks/RESULTS.md",
    "benchmarks/gpu/README.md",
    "CHANGELOG.md",
    "examples/**",
]
myst_heading_anchors = 4  # as GitHub has them
html_theme = "furo"
html_title = "macpo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#2b57a3", "color-brand-content": "#2b57a3"},
    "dark_css_variables": {"color-brand-primary": "#8fb0f0", "color-brand-content": "#8fb0f0"},
}
linkcheck_timeout = 20

LINK = re.compile(r"^- \[[^]]+\]\(([^)]+)\.md\)", re.MULTILINE)


def add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """Make the lists of links on the first page the site's table of contents.

    A toctree in the page itself would stand there as code where the site is not read.
    """
    if docname != root_doc:
        return
    trees = []
    for part in source[0].split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        pages = "\n".join(f"{page}.md" for page in LINK.findall(text))
        trees.append(f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n{pages}\n```")
    source[0] += "\n\n" + "\n\n".join(trees) + "\n"


def lead_to_contents(app: Sphinx, error: Exception | None) -> None:
    """A page at the top of the site, which lies in `docs/` as its source does."""
    if error is None and app.builder.name == "html":
        to = f"{root_doc}.html"
        leads = f'<meta http-equiv="refresh" content="0; url={to}"><a href="{to}">macpo</a>'
        Path(app.outdir, "index.html").write_text(f"<!doctype html>{leads}\n", "utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("source-read", add_contents)
    app.connect("build-finished", lead_to_contents)
    return {"parallel_read_safe": True}
