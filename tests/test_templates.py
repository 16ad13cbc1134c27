"""Chat templates that raise, that never end, or that fill the memory: one line, soon."""

from __future__ import annotations

import json
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Macpo

from macpo_data.errors import Interrupted, ModelError
from macpo_data.models import bounds
from macpo_data.models.chat import Chat
from macpo_data.models.templates import TEMPLATES
from macpo_data.schema import Message

CHATML = TEMPLATES["chatml"]
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no [red]x[/red] \x1b[31m') }}"
NO_SYSTEM += "{% endif %}" + CHATML
GOOD: list[Message] = [{"role": "user", "content": "Fine."}]
ODD: list[Message] = [{"role": "system", "content": "Be odd."}, *GOOD]


@pytest.fixture(scope="module")
def tokenizer(tiny_base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_base)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for %}", "fails: line 1: Expected an expression, got 'end of statement block'"),
        ("{{ 1/0 }}", r"fails: division by zero \(ZeroDivisionError\)"),
        ("{{ 1 + 'a' }}", r"fails: .*\(TypeError\)"),
        ("{{ messages.a.b }}", "fails: 'list object' has no attribute 'a'"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", r"fails: .*\(RecursionError\)"),
        ("{{ 'a' * 10 ** 10 }}", "fails: it takes more than 1 GiB of memory"),
        ("{{ 'a' * 10 ** 7 }}", "fails: of 1 characters it makes 10,000,000"),
        ("{{ '\\ud800' }}" + CHATML, r"fails: .*\(UnicodeEncodeError\)"),
        ("{{ raise_exception('no \x1b[31m') }}", r"fails: no \ufffd\[31m;"),
        (LOOP, "fails: it takes more than 2 seconds of processor time"),
    ],
)
def test_a_template_that_fails_is_one_line_and_soon(
    tokenizer: Any, template: str, says: str
) -> None:
    begun = time.process_time()
    with pytest.raises(ModelError, match=f"^chat template T.jinja {says}") as raised:
        Chat(tokenizer, template, "chat template T.jinja")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400
    assert str(raised.value).endswith("; mend it, or choose another chat_template")
    assert time.process_time() - begun < 6


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (NO_SYSTEM, r"refuses the role system \(row 7, system: 'Be odd.'\): no \[red\]x"),
        (
            "{% if messages[0].role == 'system' %}" + LOOP + "{% endif %}" + CHATML,
            r"fails \(row 7, system: 'Be odd.'\): it takes more than 2 seconds",
        ),
        (
            "{% if messages[0].role == 'system' %}{{ 'a' * 10 ** 6 }}{% endif %}" + CHATML,
            r"fails \(row 7, system: 'Be odd.'\): of 12 characters it makes 1,000,",
        ),
        ("{{ 1 / 0 if messages[0].role == 'system' }}" + CHATML, "refuses the role system"),
    ],
)
def test_the_first_row_that_fails_is_named(tokenizer: Any, template: str, says: str) -> None:
    """Of 1,200 rows in two batches, and by the caller's numbers."""
    chat = Chat(tokenizer, template, "T")
    with pytest.raises(ModelError, match=says):
        chat.all_prompt_ids([GOOD, ODD, ODD], rows=[3, 7, 8])
    if template is NO_SYSTEM:
        with pytest.raises(ModelError, match=r"row 1100, system"):
            chat.all_prompt_ids([GOOD] * 1100 + [ODD] * 100)
        with pytest.raises(ModelError, match=r"role system \(system: 'Be odd.'\)"):
            chat.prompt_ids(ODD)
    assert chat.all_prompt_ids([GOOD] * 2) == [chat.prompt_ids(GOOD)] * 2


def test_bounds_end_with_what_they_bound(tokenizer: Any) -> None:
    """The limits and the handler of before are back, and nothing is interrupted later."""
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGPROF)
    with pytest.raises(bounds.OutOfBounds), bounds.bounded(0):
        assert resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
        while True:
            pass
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGPROF)) == before
    assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)


def test_another_thread_renders_too(tokenizer: Any) -> None:
    """Nothing can interrupt it, so there only the length is bounded."""
    ids: list[Any] = []
    chat = Chat(tokenizer, CHATML)
    thread = threading.Thread(target=lambda: ids.append(chat.prompt_ids(GOOD)))
    thread.start()
    thread.join()
    assert ids == [chat.prompt_ids(GOOD)]


def test_ctrl_c_is_no_fault_of_a_template(tokenizer: Any, monkeypatch: Any) -> None:
    chat = Chat(tokenizer, CHATML)

    def interrupt(*args: Any, **kwargs: Any) -> None:
        raise Interrupted("interrupted")

    monkeypatch.setattr(chat.tokenizer, "apply_chat_template", interrupt)
    with pytest.raises(Interrupted):
        chat.prompt_ids(GOOD)


@pytest.mark.parametrize("template", [NO_SYSTEM, LOOP])
def test_check_says_it(macpo: Macpo, tiny_base: Path, tmp_path: Path, template: str) -> None:
    """A role that is refused is counted; a template that fails ends the check in one line."""
    (tmp_path / "t.jinja").write_text(template)
    answer = [{"role": "assistant", "content": "Pear."}]
    other = [{"role": "assistant", "content": "No."}]
    rows = [{"prompt": p, "chosen": answer, "rejected": other} for p in (GOOD, ODD)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = macpo("check", "d.jsonl", "--tokenizer", tiny_base, "--set", "chat_template=t.jinja")
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line]
    if template is NO_SYSTEM:
        table = " ".join(result.stdout.split())
        assert "refuses the role system: no [red]x[/red] \ufffd[31m" in table and not lines
        return
    (line,) = lines
    wanted = "fails: it takes more than 2 seconds of processor time;"
    assert line.startswith(f"error: chat template t.jinja {wanted}")
