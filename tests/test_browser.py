"""The report in a real browser: no network, charts, search, and nothing of a model's runs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import RECIPE, no_progress
from test_headline import PAPER

from benchmarks.report import big_run
from macpo_data.evaluation.evaluate import evaluate
from macpo_data.evaluation.policies import trained
from macpo_data.loading.load import load_recipe
from macpo_data.report.collect import Source, collect
from macpo_data.report.page import page
from macpo_run.rounds import Run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
MARK = "window.broken = true"
HOSTILE = [
    f"</script><script>{MARK}</script>",
    f"<!--<script>{MARK}//",
    f'<img src=x onerror="{MARK}">',
    f"<svg onload='{MARK}'><style>body{{display:none}}</style>",
    f"javascript:{MARK} <a href='javascript:{MARK}'>link</a> <iframe srcdoc='<script>{MARK}'>",
    "${window.broken = 1} {{constructor.constructor('window.broken = 1')()}} {data} {script}",
    "&lt;b&gt; &amp; \u2028 \u2029 </title></textarea><plaintext>",
    "right to left \u202e gnihton \u0000 null \u0007 bell",
    '"]}, __proto__ constructor \\u003c/script\\u003e',
    "]]> <?php 1 ?> <base href=//evil.example> <meta http-equiv=refresh content=0>",
    "= calc ` backtick ' quote \\ backslash \t tab \r\n line",
    "<link rel=stylesheet href=http://evil.example/x.css> <form action=//evil.example>",
]


def everything(recipe: str, folder: Path, *sets: str) -> Run:
    run = Run(load_recipe(recipe, ["engine.name=fake", *sets]), folder, no_progress, print)
    for each in range(run.recipe.rounds + 1):
        assert not run.finish_round(each).waiting
    evaluate(run.context(), trained(run.plan, run.store))
    return run


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`both`: a run of the world and one of hostile pairs; `big`: 5,000 pairs of usual length."""
    folder = tmp_path_factory.mktemp("reports")
    world = folder / "world.yaml"
    world.write_text(RECIPE)
    rows = [
        {"prompt": f"{n} {text}", "chosen": f"chosen {text}", "rejected": f"rejected {text}"}
        for n in range(3)
        for text in HOSTILE
    ]
    for n, part in enumerate(("d1", "d2", "test")):
        own = rows[n * len(HOSTILE) : (n + 1) * len(HOSTILE)]
        (folder / f"{part}.jsonl").write_text("\n".join(map(json.dumps, own)))
    data = "data: {source: pairs, probe: {count: 0}, " + ", ".join(
        f"{part}: {{path: {folder}/{part}.jsonl}}" for part in ("d1", "d2", "test")
    )
    hostile = folder / "hostile.yaml"
    hostile.write_text(re.sub(r"data:\n(  .*\n)+", f"{data}}}\n", RECIPE))
    runs = [everything(str(path), folder / path.stem) for path in (world, hostile)]
    names = ("world", "hostile")
    both = collect([Source(n, r.plan, r.store) for n, r in zip(names, runs, strict=True)])
    history = {"step": [1, 2, 3], "loss": [3, 2, 1], "margin": [0, 1, 2]}
    curve = {"round": 1, "learner": "student", "behavior": "positive", "columns": history}
    both["recipes"][0]["curves"] = [curve]  # the fake engine trains nothing
    paths = {"both": folder / "both.html", "big": folder / "big.html"}
    paths["both"].write_text(page(both), "utf-8")
    paths["big"].write_text(page(collect([big_run(folder / "big")])), "utf-8")
    return paths


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def sheet(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """An empty page; at the end nothing was asked of a network, and nothing complained."""
    options: dict[str, Any] = getattr(request, "param", {})
    context = browser.new_context(offline=True, **options)
    opened = context.new_page()
    asked, errors = [], []
    opened.on("request", lambda r: asked.append(r.url))
    opened.on("console", lambda m: errors.append(m.text))
    opened.on("pageerror", lambda e: errors.append(str(e)))
    yield opened
    broken = opened.evaluate("window.broken")
    context.close()
    assert (len(asked), errors, broken) == (1, [], None), asked  # the page itself


def show(sheet: Page, path: Path) -> None:
    sheet.goto(path.as_uri())
    sheet.wait_for_selector("html[data-ready]", state="attached")


def unfold(sheet: Page) -> None:
    sheet.evaluate("document.querySelectorAll('.fold, #more-figures').forEach(d => d.open = true)")


def test_every_chart_is_drawn(sheet: Page, reports: dict[str, Path]) -> None:
    """Gold of both recipes and winners; folded gold of this one, twins, 3 spreads, 2 curves."""
    show(sheet, reports["both"])
    assert sheet.locator("#score-figures figure").count() == 2  # that are open at first
    assert [box.is_visible() for box in sheet.locator(".plot").all()].count(True) == 2
    unfold(sheet)
    plots = sheet.locator(".plot")
    assert plots.count() >= 9
    marks = "g.mark-symbol path, g.mark-rect path, g.mark-line path"
    for n in range(plots.count()):
        plots.nth(n).scroll_into_view_if_needed()
        plots.nth(n).locator(marks).first.wait_for(state="attached")
        assert plots.nth(n).get_attribute("aria-label")
    # Four agents with rounds 0 and 1, and their twins of round 0 apart.
    tables = sheet.locator("#other-figures details table")
    assert [tables.nth(n).locator("tbody tr").count() for n in (0, 1)] == [8, 4]
    assert "the negative twins" in sheet.locator("#other-figures h3").all_inner_texts()[1]
    assert sheet.locator("h1").inner_text().startswith("The student did not clearly change")


def test_the_first_screen_needs_no_paper(sheet: Page, reports: dict[str, Path]) -> None:
    """The verdict, its numbers and the scores by round; what is for the expert is folded up."""
    show(sheet, reports["both"])
    shown = sheet.locator("header, #score-table").all_inner_texts()
    assert "The student did not clearly change: 0.00 of 1" in shown[0]
    assert "Score: from 0 (bad) to 1 (good)" in shown[1]
    assert not [word for word in PAPER if word in " ".join(shown).replace("Pairs", "")]
    rows = sheet.locator("#score-table tbody tr").all_inner_texts()
    assert rows[0].split() == ["student", "0.00", "0.00"] and len(rows) == 5
    assert rows[-1].startswith("student's answers, characters")
    assert not sheet.locator("#warnings").is_visible()
    sheet.press("#expert", "Enter")  # a key: charts that are still drawn move the line away
    sheet.locator("#warnings").wait_for(state="visible")


def test_search_and_filters(sheet: Page, reports: dict[str, Path]) -> None:
    show(sheet, reports["both"])
    count = sheet.locator("#pair-count")
    assert count.inner_text() == "24 of 96 pairs on this page"  # the student's two rounds
    sheet.select_option("#pair-learner", "all")
    assert count.inner_text().startswith("96 of 96")
    assert sheet.locator("article.pair").count() == 20
    sheet.click("#pair-more")
    assert sheet.locator("article.pair").count() == 40
    sheet.select_option("#pair-round", "1")
    assert count.inner_text().startswith("48 of")
    sheet.select_option("#pair-agent", "student")  # the three teachers' chosen
    assert count.inner_text().startswith("36 of")
    asked = sheet.locator("article.pair .text").first.inner_text()
    sheet.fill("#pair-search", asked.upper())
    assert count.inner_text().startswith("3 of")
    assert set(sheet.locator("article.pair > div:nth-child(2) .text").all_inner_texts()) == {asked}
    sheet.fill("#pair-search", "no such words")
    assert count.inner_text().startswith("0 of") and sheet.locator("article.pair").count() == 0


def test_answers_over_rounds_stand_side_by_side(sheet: Page, reports: dict[str, Path]) -> None:
    show(sheet, reports["both"])
    heads = sheet.locator("#answer h3")
    assert heads.all_inner_texts() == ["round 0", "round 1", "round 0 (negative)"]
    assert "gold" in sheet.locator("#answer .meta").first.inner_text()
    first = sheet.locator("#answer .text").first.inner_text()
    sheet.click("#answer-on")
    assert sheet.locator("#answer-at").inner_text() == "2 of 6"
    assert sheet.locator("#answer .text").first.inner_text() != first


def test_the_top_names_models_prompts_judge_and_compares(
    sheet: Page, reports: dict[str, Path]
) -> None:
    show(sheet, reports["both"])
    about = " ".join(sheet.locator("#about").inner_text().split())
    assert "teachers teacher1 (world:weak-a), teacher2 (world:weak-b)" in about
    assert "student student (world:strong)" in about and "12 to learn from" in about
    assert "6 held out" in about and "judge world" in about
    # The hostile pairs bring no judge.
    assert "not measured alike" in sheet.locator("#versus").inner_text()
    expected = sheet.locator("#actions-block").is_visible()
    assert expected == bool(sheet.locator("#actions li").count())


def test_answers_that_got_better_or_worse(sheet: Page, reports: dict[str, Path]) -> None:
    """The fake engine's answers are all worth 0: as good as in the first round, none better."""
    show(sheet, reports["both"])
    for choice, count in (("better", "none"), ("worse", "none"), ("as good", "1 of 6")):
        (label,) = (
            text for text in sheet.locator("#answer-change option").all_inner_texts()
            if text.startswith(choice)
        )  # fmt: skip
        sheet.select_option("#answer-change", label)
        assert sheet.locator("#answer-at").inner_text() == count
    changed = sheet.evaluate(
        """window.macpoChanged({ answers: [
            { agent: "s", behavior: "positive", round: 2, scores: { gold: 1 } },
            { agent: "s", behavior: "negative", round: 0, scores: { gold: 1 } },
            { agent: "s", behavior: "positive", round: 0, scores: { gold: 0.5 } }] }, "s")"""
    )
    assert changed == 1


def test_words_are_explained(sheet: Page, reports: dict[str, Path]) -> None:
    show(sheet, reports["both"])
    held_out = sheet.locator("#score-table abbr").first
    assert held_out.inner_text() == "held-out" and "trained on" in str(
        held_out.get_attribute("title")
    )
    assert sheet.locator("#glossary dt").count() >= 15
    unfold(sheet)
    assert "_" not in " ".join(
        sheet.locator("#data-figures figure:last-child svg text").all_inner_texts()
    )


def test_by_keyboard_alone(sheet: Page, reports: dict[str, Path]) -> None:
    """From the top: the way to the pairs, the choice, the links; a link unfolds where it leads."""
    show(sheet, reports["both"])
    order = []
    for _ in range(10):
        sheet.keyboard.press("Tab")
        order.append(
            sheet.evaluate("document.activeElement.id || document.activeElement.textContent")
        )
    links = ["Scores", "Plan", "Data", "Training", "Answers", "Pairs", "Provenance", "Words"]
    assert order == ["Skip to the pairs", "recipe", *links]
    assert sheet.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    sheet.locator("nav a", has_text="Data").press("Enter")
    sheet.locator("#data-figures .plot").first.wait_for(state="visible")


def test_everything_has_a_name(sheet: Page, reports: dict[str, Path]) -> None:
    """Controls have labels, ids are there once, headings skip no level."""
    show(sheet, reports["both"])
    unnamed = "all => all.filter(e => !e.labels?.length && !e.textContent.trim()).map(e => e.id)"
    assert sheet.locator("select, input, button").evaluate_all(unnamed) == []
    ids = sheet.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len({*ids})
    levels = sheet.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(e => +e.tagName[1])")
    assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels))


def test_another_recipe_and_hostile_text(sheet: Page, reports: dict[str, Path]) -> None:
    """All texts stand on the page as they were written, and none of them did anything."""
    show(sheet, reports["both"])
    sheet.select_option("#recipe", "1")
    sheet.select_option("#pair-learner", "teacher1")
    sheet.select_option("#pair-round", "0")
    assert sheet.locator("#kicker").inner_text().startswith("macpo report · hostile")
    shown = sheet.locator("#pair-list .text").evaluate_all("all => all.map(e => e.textContent)")
    for text in HOSTILE:
        assert {f"0 {text}", f"chosen {text}", f"rejected {text}"} <= set(shown)
    assert sheet.locator("#pair-list").locator("script, img, svg, iframe, a, link").count() == 0
    sheet.fill("#pair-search", "<img src=x")
    assert sheet.locator("#pair-count").inner_text().startswith("1 of")


@pytest.mark.parametrize(
    "sheet", [{"viewport": {"width": 360, "height": 740}, "is_mobile": True}], indirect=True
)
def test_a_phone_does_not_scroll_sideways(sheet: Page, reports: dict[str, Path]) -> None:
    show(sheet, reports["both"])
    for recipe in ("1", "0"):
        sheet.select_option("#recipe", recipe)
        assert sheet.evaluate("document.documentElement.scrollWidth") <= 360
        wide = "all => all.filter(e => e.getBoundingClientRect().right > 361).length"
        assert sheet.locator(".plot svg, select, input, article, h1").evaluate_all(wide) == 0


@pytest.mark.parametrize("sheet", [{"color_scheme": "dark"}], indirect=True)
def test_the_dark(sheet: Page, reports: dict[str, Path]) -> None:
    show(sheet, reports["both"])
    paper = sheet.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", paper))) < 50
    label = sheet.locator(".plot svg text").first
    dark = label.evaluate("e => getComputedStyle(e).fill")
    assert min(map(int, re.findall(r"\d+", dark))) > 100
    sheet.emulate_media(color_scheme="light")
    sheet.wait_for_function(
        "fill => getComputedStyle(document.querySelector('.plot svg text')).fill !== fill", arg=dark
    )


def test_5000_pairs_open_quickly(sheet: Page, reports: dict[str, Path]) -> None:
    """The goal is 2 s (benchmarks/report.py); the bound here allows for a busy machine."""
    assert reports["big"].stat().st_size < 10e6
    show(sheet, reports["big"])
    spent = sheet.evaluate("performance.now()")
    assert "of 5,000 pairs" in sheet.locator("#pair-count").inner_text()
    assert spent < 10_000
    sheet.fill("#pair-search", "good 4321 ")
    assert sheet.locator("#pair-count").inner_text().startswith("1 of")
