"""The report as one HTML file: works offline, and shows text from models only as text."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import Any

from macpo_data.report.excerpt import inline_json

VEGA_LITE = "6.4"  # of those that vl-convert brings; Vega and Vega-Embed go with it
# Nothing is loaded, sent or evaluated: only these two blocks run and style.
POLICY = "default-src 'none'; script-src '{script}'; style-src '{style}'; base-uri 'none'"


def page(data: dict[str, Any]) -> str:
    """The page of what `report.collect` gives."""
    script, style = _script(), _read("page.css")
    policy = POLICY.format(script=_hash(script), style=_hash(style))
    html = _read("page.html").replace("{policy}", policy).replace("{style}", style)
    # What may hold braces comes last, so that nothing in it is replaced.
    head, _, tail = html.partition("{data}")
    between, _, end = tail.partition("{script}")
    return "".join([head, inline_json(data), between, script, end])


@cache
def _script() -> str:
    """The page's own code with Vega in front of it, as one block."""
    import vl_convert

    code = str(
        vl_convert.javascript_bundle(
            _read("page.words.js") + _read("page.js"), vl_version=VEGA_LITE
        )
    )
    return code.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _read(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
