"""Sources: what each form becomes, what is put aside, and that parts never share a prompt."""

from __future__ import annotations

import gzip
import json
import re
import string
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from macpo_data import schema
from macpo_data.errors import DataError
from macpo_data.recipe.data import Data
from macpo_data.sources import registry
from macpo_data.sources.files import resolve
from macpo_data.sources.parts import read_parts
from macpo_data.sources.places import paths
from macpo_data.sources.registry import Accounts
from macpo_data.world.judge import gold

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
Parts = dict[schema.Part, pl.DataFrame]


def real(name: str) -> str:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"the real data set {name} is not beside the checkout")
    return str(path)


def make(**values: Any) -> Data:
    return TypeAdapter(Data).validate_python({"probe": {"count": 0}, **values})


def read(seed: int = 0, /, **values: Any) -> tuple[Parts, pl.DataFrame]:
    """The parts as they are drawn; the probe, which is taken out of D1, has tests of its own."""
    parts, unusable = read_parts(make(**values), seed)
    assert parts.pop("probe").is_empty()
    return parts, unusable


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def counts(unusable: pl.DataFrame) -> dict[str, int]:
    return dict(Counter(unusable["reason"]))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def plain(n: int, start: int = 0) -> list[dict[str, Any]]:
    numbers = range(start, start + n)
    return [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in numbers]


def ids(frame: pl.DataFrame) -> set[str]:
    return set(frame["prompt_id"])


def assert_contract(parts: Parts, unusable: pl.DataFrame) -> None:
    for part in ("d1", "d2", "test"):
        frame = parts[part]
        assert dict(frame.schema) == schema.PROMPTS
        assert frame["prompt_id"].is_unique().all()
        for row in frame.iter_rows(named=True):
            assert row["prompt_id"] == schema.prompt_id(row["prompt"])
            assert row["prompt"][-1]["role"] == "user"
            assert all(m["content"] == m["content"].strip() != "" for m in row["prompt"])
    assert not ids(parts["d1"]) & ids(parts["d2"])
    assert not ids(parts["test"]) & (ids(parts["d1"]) | ids(parts["d2"]))
    assert dict(unusable.schema) == schema.UNUSABLE
    assert unusable.null_count().sum_horizontal().item() == 0


# ---------------------------------------------------------------------------- real data


def by_hand(path: str) -> tuple[list[tuple[Any, str, str]], Counter[str]]:
    """Read raw HH independently, row by row: the usable conversations, and why others are not."""
    usable, why = [], Counter[str]()
    for line in gzip.decompress(Path(path).read_bytes()).decode().rstrip("\n").split("\n"):
        sides = []
        for side in ("chosen", "rejected"):
            head, *rest = re.split(r"\n\n(Human|Assistant): ?", json.loads(line)[side])
            assert head == ""
            sides.append([(rest[i], rest[i + 1].strip()) for i in range(0, len(rest), 2)])
        one, two = sides
        speakers = [who for who, _ in one[:-1]]
        if one[:-1] != two[:-1]:
            why["prompt_differs"] += 1
        elif not one[-1][1]:
            why["empty_chosen"] += 1
        elif not two[-1][1]:
            why["empty_rejected"] += 1
        elif any(a == b for a, b in pairwise(speakers)):
            why["not_alternating"] += 1
        else:
            usable.append((tuple(one[:-1]), one[-1][1], two[-1][1]))
    return usable, why


def test_raw_hh_agrees_with_a_reading_by_hand() -> None:
    path = real("hh_harmless_raw_test.jsonl.gz")
    usable, why = by_hand(path)
    assert why.total() == 13
    half = {"count": 1000}
    parts, unusable = read(source="hh_rlhf", path=path, d1=half, d2=half, test={"count": 250})
    assert_contract(parts, unusable)
    reasons = counts(unusable)
    twins = len(usable) - len({prompt for prompt, _, _ in usable})
    assert reasons == {**why, "duplicate_prompt": twins}

    expected = set(usable)
    names = {"user": "Human", "assistant": "Assistant"}
    for row in pl.concat(parts.values()).iter_rows(named=True):
        prompt = tuple((names[m["role"]], m["content"]) for m in row["prompt"])
        assert (prompt, row["chosen"], row["rejected"]) in expected
    assert max(len(p) for p in parts["d1"]["prompt"]) > 1, "multi-turn prompts stay multi-turn"


def test_both_forms_of_hh_give_the_same_rows() -> None:
    """The parquet is the raw file's 2,299 usable rows; each of the two has every prompt once."""
    counted = {"d1": {"count": 1000}, "d2": {"count": 1000}, "test": {"count": 297}}
    tables = []
    for name in ("hh_harmless_raw_test.jsonl.gz", "hh_harmless_multiturn.parquet"):
        parts, _ = read(source="hh_rlhf", path=real(name), **counted)
        tables.append(set().union(*(ids(frame) for frame in parts.values())))
    assert tables[0] == tables[1]
    assert len(tables[0]) == 2297


def test_parts_from_their_own_files() -> None:
    names = {part: real(f"hh_harmless_{part}.parquet") for part in ("d1", "d2", "test")}
    prompts = {
        part: [json.dumps(p) for p in pl.read_parquet(path)["prompt"].to_list()]
        for part, path in names.items()
    }
    parts, unusable = read(
        source="hh_rlhf",
        path="none/at-all",
        **{part: {"path": path} for part, path in names.items()},
    )
    assert_contract(parts, unusable)
    test = set(prompts["test"])
    d1 = set(prompts["d1"]) - test
    assert len(parts["test"]) == len(test)
    assert len(parts["d1"]) == len(d1)
    assert len(parts["d2"]) == len(set(prompts["d2"]) - test - d1)
    rows = sum(map(len, prompts.values()))
    assert sum(map(len, parts.values())) + len(unusable) == rows, "no row vanishes"


def test_pku_in_either_form(tmp_path: Path) -> None:
    path = real("pku_saferlhf.parquet")
    parts, unusable = read(
        source="pku_saferlhf", path=path, d1={"count": 300}, d2={"count": 300}, test={"count": 100}
    )
    assert_contract(parts, unusable)
    distinct = {json.dumps(p) for p in pl.read_parquet(path)["prompt"].to_list()}
    assert counts(unusable) == {"duplicate_prompt": 4248 - len(distinct)}

    row = {"response_0": "kind", "response_1": "useful", "better_response_id": 1}
    row |= {"safer_response_id": 0, "is_response_0_safe": True, "is_response_1_safe": False}
    rows = [{"prompt": f"p{i}", **row} for i in range(3)]
    rows.append({"prompt": "p9", **row, "better_response_id": 2, "safer_response_id": None})
    raw = jsonl(tmp_path / "pku.jsonl", rows)
    one = {"d1": {"count": 1}, "d2": {"count": 1}, "test": {"count": 1}}
    for preference, sides in {"better": ("useful", "kind"), "safer": ("kind", "useful")}.items():
        parts, unusable = read(source="pku_saferlhf", path=raw, preference=preference, **one)
        for frame in parts.values():
            assert frame.select("chosen", "rejected").rows() == [sides]
        assert counts(unusable) == {"no_preference": 1}


def test_splits_of_a_file_and_prompts_alone() -> None:
    """A file's column `split` counts; d2 and test do not need answers."""
    path = real("ultrafeedback.parquet")
    only = real("alpacaeval_prompts.parquet")
    frame = pl.read_parquet(path)
    train = {"split": "train"}
    parts, _ = read(
        source="pairs", path=path, d1=train, d2={"path": only, "count": 5}, test={"split": "test"}
    )
    assert len(parts["d1"]) == frame.filter(pl.col("split") == "train").height
    assert len(parts["test"]) == frame.filter(pl.col("split") == "test").height
    assert parts["d2"]["chosen"].null_count() == 5
    again, _ = read(source="ultrafeedback", path=path, d1=train, d2=train | {"count": 7},
                    test={"split": "test"}, overlap=True)  # fmt: skip
    # d2 is drawn from what d1 has, which then need not say how many it takes.
    assert again["d1"].equals(parts["d1"])
    assert set(again["d2"]["prompt_id"]) < set(again["d1"]["prompt_id"])


def test_ultrachat_beside_another(tmp_path: Path) -> None:
    """The last answer is taken off; a part's second dataset follows the first, without repeats."""
    talk = [user("Hi"), assistant("Yes?"), user("Why?"), assistant("So.")]
    rows = [{"prompt": "x", "prompt_id": str(i), "messages": [user(f"q{i}"), *talk[1:]]}
            for i in range(4)]  # fmt: skip
    rows.append({"prompt": "x", "prompt_id": "5", "messages": [user("open")]})
    chat = jsonl(tmp_path / "chat.jsonl", rows)
    parts, _ = read(
        source="world", d1={"count": 3, "more": {"source": "ultrachat", "path": chat, "count": 4}},
        d2={"count": 2}, test={"count": 2},
    )  # fmt: skip
    assert len(parts["d1"]) == 7
    added = parts["d1"].tail(4).to_dicts()
    assert all(row["rejected"] is None for row in added)
    # A conversation that the user ends has no last answer, and is put aside.
    assert {row["prompt"][0]["content"] for row in added} == {"q0", "q1", "q2", "q3"}
    assert {(len(row["prompt"]), row["chosen"]) for row in added} == {(3, "So.")}
    with pytest.raises(DataError, match=r"chat.jsonl: data.d1.more asks for 9 rows, 4 usable"):
        read(
            source="world", d2={"count": 2}, test={"count": 2},
            d1={"count": 3, "more": {"source": "ultrachat", "path": chat, "count": 9}},
        )  # fmt: skip


def test_a_second_dataset_has_the_rights_of_the_first(tmp_path: Path) -> None:
    """The second holds rows 5-14, of which test took 5 and d1 6 and 7, and one without a prompt: 7
    are left. A limit bounds both together: of 4 rows 3 are the first's, of 2 all."""
    first = jsonl(tmp_path / "first.jsonl", plain(3, 6)[:2] + plain(1, 50))
    second = jsonl(tmp_path / "second.jsonl", [*plain(10, 5), plain(1)[0] | {"prompt": ""}])
    files: dict[str, Any] = {
        "test": {"path": jsonl(tmp_path / "test.jsonl", plain(1, 5))},
        "d1": {"path": first, "more": {"source": "pairs", "path": second, "count": 7}},
        "d2": {"path": jsonl(tmp_path / "d2.jsonl", plain(1, 99))},
    }
    parts, unusable = read(source="pairs", **files)
    assert len(parts["d1"]) == 3 + 7
    expected = {"prompt_in_test": 1, "prompt_in_d1": 2, "empty_prompt": 1}
    assert counts(unusable) == expected and set(unusable["part"]) == {"d1"}
    for limit in (4, 2):
        some, _ = read(source="pairs", limit=limit, **files)
        assert some["d1"].equals(parts["d1"].head(limit))


def test_with_overlap_nobody_is_put_aside_for_what_was_drawn(tmp_path: Path) -> None:
    """One file for all three parts: test's 4 rows are used, so that they are not unusable; a twin
    of a test row in d2's own file is."""
    path = jsonl(tmp_path / "all.jsonl", plain(12))
    parts, unusable = read(source="pairs", path=path, overlap=True, test={"count": 4},
                           d1={"count": 8})  # fmt: skip
    assert len(parts["d1"]) == 8 and ids(parts["d2"]) == ids(parts["d1"])
    assert unusable.is_empty()
    twin = jsonl(tmp_path / "twin.jsonl", plain(3, 10))
    one = {"path": jsonl(tmp_path / "one.jsonl", plain(1, 10))}
    _, unusable = read(source="pairs", d1={"path": path}, d2={"path": twin}, test=one, overlap=True)
    assert counts(unusable) == {"prompt_in_test": 2}


# ---------------------------------------------------------------------------- forms


def test_raw_hh_text(tmp_path: Path) -> None:
    dialogue = "\n\nHuman: Hi \n\nAssistant: Yes?\n\nHuman: A\n\nB Human: C\n\nAssistant:"
    rows = [{"chosen": f"{dialogue} good{i}\n", "rejected": f"{dialogue} bad"} for i in range(2)]
    rows += [
        {
            "chosen": f"\n\nHuman: {who}\n\nAssistant: a",
            "rejected": f"\n\nHuman: {who}\n\nAssistant: b",
        }
        for who in ("x", "y")
    ]
    rows.append({"chosen": "Dear all,\n\nHuman: h\n\nAssistant: a", "rejected": "no turns at all"})
    rows.append({"chosen": "\n\nHuman: h", "rejected": "\n\nHuman: h"})
    path = jsonl(tmp_path / "raw.jsonl", rows)
    one = {"count": 1}
    parts, unusable = read(source="hh_rlhf", path=path, d1=one, d2=one, test=one)
    assert_contract(parts, unusable)
    long = [f for f in parts.values() if len(f["prompt"][0]) == 3]
    assert long[0].row(0)[1:4] == (
        [user("Hi"), assistant("Yes?"), user("A\n\nB Human: C")],
        "good0",
        "bad",
    )
    assert counts(unusable) == {
        "duplicate_prompt": 1,
        "no_human_turn": 1,
        "empty_prompt": 1,
    }


MESSAGE_FORMS: dict[str, dict[str, Any]] = {
    "text": {"prompt": " p ", "chosen": " c ", "rejected": "r\n"},
    "prompt messages": {"prompt": [user(" p")], "chosen": "c", "rejected": "r"},
    "answers as messages": {
        "prompt": [user("p")],
        "chosen": [assistant("c")],
        "rejected": [assistant("r ")],
    },
    "implicit prompt": {
        "chosen": [user("p"), assistant("c")],
        "rejected": [user("p "), assistant("r")],
    },
    "prompt said twice": {
        "prompt": "p",
        "chosen": [user("p"), assistant("c")],
        "rejected": [user("p"), assistant("r")],
    },
}


@pytest.mark.parametrize("form", MESSAGE_FORMS)
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "json", "parquet"])
def test_pairs_in_every_form_and_file(form: str, suffix: str, tmp_path: Path) -> None:
    rows = [MESSAGE_FORMS[form], *[_renamed(MESSAGE_FORMS[form], f"p{i}") for i in range(2)]]
    rows = [{"meta": {"x": 1}, **row} for row in rows]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        pl.DataFrame(rows).write_parquet(path)
    elif suffix == "jsonl.gz":
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    else:
        text = json.dumps(rows) if suffix == "json" else "\n".join(map(json.dumps, rows))
        path.write_text(text)
    one = {"count": 1}
    parts, unusable = read(source="pairs", path=str(path), d1=one, d2=one, test=one)
    assert_contract(parts, unusable)
    sides = {f["prompt"][0][0]["content"]: f.row(0)[1:4] for f in parts.values()}
    assert set(sides) == {"p", "p0", "p1"}
    assert sides["p"] == ([user("p")], "c", "r")
    assert unusable.is_empty()


def _renamed(row: dict[str, Any], name: str) -> dict[str, Any]:
    return dict(json.loads(re.sub(r'"( ?)p( ?)"', f'"{name}"', json.dumps(row))))


def test_rows_are_the_same_in_whatever_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five whole rows, and one without an answer at place 2: no batch of two shifts it."""
    rows = plain(6)
    rows[2]["chosen"] = " "
    spec = {"path": jsonl(tmp_path / "a.jsonl", rows), "d1": {"count": 2}, "d2": {"count": 2}}
    parts, unusable = read(source="pairs", test={"count": 1}, **spec)
    monkeypatch.setattr(registry, "BATCH", 2)
    again, unusable_again = read(source="pairs", test={"count": 1}, **spec)
    assert unusable["row"].to_list() == [2]
    assert unusable_again.equals(unusable)
    assert all(again[part].equals(frame) for part, frame in parts.items())


def test_columns_are_mapped(tmp_path: Path) -> None:
    rows = [{"q": f"p{i}", "win": "c", "lose": "r", "chosen": 7} for i in range(3)]
    path = jsonl(tmp_path / "x.jsonl", rows)
    one = {"count": 1}
    columns = {"prompt": "q", "chosen": "win", "rejected": "lose"}
    parts, _ = read(source="pairs", path=path, columns=columns, d1=one, d2=one, test=one)
    assert parts["d1"].select("chosen", "rejected").rows() == [("c", "r")]
    with pytest.raises(DataError, match=r"no column prompt, rejected .*data\.columns"):
        read(source="pairs", path=path, d1=one, d2=one, test=one)
    with pytest.raises(DataError, match="column chosen is a number, no text"):
        columns["chosen"] = "chosen"
        read(source="pairs", path=path, columns=columns, d1=one, d2=one, test=one)


def test_world() -> None:
    count = {"count": 50}
    parts, unusable = read(source="world", d1=count, d2=count, test=count)
    assert_contract(parts, unusable)
    assert unusable.is_empty()
    row = parts["test"].row(0, named=True)
    assert gold(row["prompt"], row["chosen"]).score > gold(row["prompt"], row["rejected"]).score
    other, _ = read(1, source="world", d1=count, d2=count, test=count)
    assert ids(parts["d1"]) != ids(other["d1"])
    with pytest.raises(DataError, match=r"data\.d1.*no path or split"):
        read(source="world", d1={"path": "x.jsonl", "count": 1}, d2=count, test=count)


# ---------------------------------------------------------------------------- put aside

BAD = {
    "prompt_differs": {
        "chosen": [user("a"), assistant("c")],
        "rejected": [user("b"), assistant("r")],
    },
    "empty_prompt": {
        "chosen": [user(" "), assistant("c")],
        "rejected": [user(" "), assistant("r")],
    },
    "empty_chosen": {
        "chosen": [user("a"), assistant(" ")],
        "rejected": [user("a"), assistant("r")],
    },
    "empty_rejected": {
        "chosen": [user("a"), assistant("c")],
        "rejected": [user("a"), assistant("")],
    },
    "same_sides": {"chosen": [user("a"), assistant("c")], "rejected": [user("a"), assistant("c ")]},
    "not_alternating": {
        "chosen": [user("a"), user("b"), assistant("c")],
        "rejected": [user("a"), user("b"), assistant("r")],
    },
    "too_long": {
        "chosen": [user("a" * 21), assistant("c")],
        "rejected": [user("a" * 21), assistant("r")],
    },
    "duplicate_prompt": {
        "chosen": [user("ok0"), assistant("c")],
        "rejected": [user("ok0"), assistant("r")],
    },
}
ODD = {
    "no messages": ({"chosen": [], "rejected": []}, "empty_prompt"),
    "null": ({"chosen": None, "rejected": None}, "empty_prompt"),
    "no prompt": ({"chosen": [assistant("c")], "rejected": [assistant("r")]}, "empty_prompt"),
    "ends in a question": ({"chosen": [user("a"), user("c")], "rejected": [user("a"), user("r")]},
                           "not_alternating"),
    "assistant first": (
        {
            "chosen": [assistant("a"), user("b"), assistant("c")],
            "rejected": [assistant("a"), user("b"), assistant("r")],
        },
        "not_alternating",
    ),
    "unknown role": (
        {
            "chosen": [{"role": "tool", "content": "b"}, assistant("c")],
            "rejected": [{"role": "tool", "content": "b"}, assistant("r")],
        },
        "not_alternating",
    ),
    "two faults": ({"chosen": [user(""), assistant("c")], "rejected": [user("b"), assistant("")]},
                   "prompt_differs"),
}  # fmt: skip
FINE = [
    {"chosen": [user(f"ok{i}"), assistant("c")], "rejected": [user(f"ok{i}"), assistant("r")]}
    for i in range(3)
]
CASES = [(row, reason) for reason, row in BAD.items()] + list(ODD.values())


@pytest.mark.parametrize(("row", "reason"), CASES, ids=[*BAD, *ODD])
def test_every_reason(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [*FINE, row])
    one = {"count": 1}
    parts, unusable = read(source="pairs", path=path, max_prompt_chars=20, d1=one, d2=one, test=one)
    assert_contract(parts, unusable)
    assert unusable.select("row", "reason").rows() == [(3, reason)]
    assert set(json.loads(unusable["text"][0])) == {"prompt", "chosen", "rejected"}


def test_a_broken_twin_costs_nothing(tmp_path: Path) -> None:
    """A row that cannot be used does not make the next one with its prompt a duplicate."""
    broken = {"prompt": "p0", "chosen": "", "rejected": "r"}
    path = jsonl(tmp_path / "x.jsonl", [broken, *plain(3)])
    one = {"count": 1}
    _, unusable = read(source="pairs", path=path, d1=one, d2=one, test=one)
    assert counts(unusable) == {"empty_chosen": 1}


def test_a_system_turn_is_fine(tmp_path: Path) -> None:
    rows = [
        {**r, "prompt": [{"role": "system", "content": "s"}, user(r["prompt"])]} for r in plain(3)
    ]
    one = {"count": 1}
    path = jsonl(tmp_path / "x.jsonl", rows)
    parts, _ = read(source="pairs", path=path, d1=one, d2=one, test=one)
    assert parts["d1"]["prompt"][0][0]["role"] == "system"


# ---------------------------------------------------------------------------- parts


def test_the_order_is_test_then_d1_then_d2(tmp_path: Path) -> None:
    """Files 0-9, 5-14 and 0-19: d1 loses what test has, d2 what either has."""
    test, d1, d2 = (
        jsonl(tmp_path / f"{i}.jsonl", rows)
        for i, rows in enumerate([plain(10), plain(10, 5), plain(20)])
    )
    parts, unusable = read(source="pairs", test={"path": test}, d1={"path": d1}, d2={"path": d2})
    assert {part: len(frame) for part, frame in parts.items()} == {"test": 10, "d1": 5, "d2": 5}
    assert Counter(zip(unusable["part"], unusable["reason"], strict=True)) == {
        ("d1", "prompt_in_test"): 5,
        ("d2", "prompt_in_test"): 10,
        ("d2", "prompt_in_d1"): 5,
    }


def test_limit_takes_the_first_rows_of_the_whole(tmp_path: Path) -> None:
    files: dict[str, dict[str, Any]] = {
        part: {"path": jsonl(tmp_path / f"{part}.jsonl", plain(20, 100 * i))}
        for i, part in enumerate(("d1", "d2", "test"))
    }
    whole, _ = read(source="pairs", **files)
    some, _ = read(source="pairs", limit=7, **files)
    more, _ = read(source="pairs", limit=70, **files)
    for part, frame in whole.items():
        assert some[part].equals(frame.head(7))
        assert more[part].equals(frame)
    files["d1"]["count"] = 5000
    assert len(read(source="pairs", limit=7, **files)[0]["d1"]) == 7


def test_several_files_are_one_place(tmp_path: Path) -> None:
    names = [jsonl(tmp_path / f"{i}.jsonl", plain(3, 3 * i)) for i in range(2)]
    counts_ = {"d1": {"count": 2}, "d2": {"count": 2}, "test": {"count": 2}}
    parts, _ = read(source="pairs", path=names, **counts_)
    assert len(set().union(*(ids(f) for f in parts.values()))) == 6
    data = make(source="pairs", path=names, **{**counts_, "test": {"path": "org/name"}})
    assert paths(data) == [*names, "org/name"]


def test_a_file_without_splits_is_one_split(tmp_path: Path) -> None:
    """Recipes made for a Hub dataset go with local files, and nothing is drawn twice."""
    path = jsonl(tmp_path / "x.jsonl", plain(6))
    parts, _ = read(
        source="pairs",
        path=path,
        d1={"split": "train", "count": 2},
        d2={"split": "train", "count": 2},
        test={"split": "test", "count": 2},
    )
    assert len(set().union(*(ids(f) for f in parts.values()))) == 6


@settings(max_examples=25, deadline=None)
@given(
    words=st.lists(st.text(string.ascii_lowercase[:3], max_size=2), min_size=1, max_size=30),
    sizes=st.tuples(*[st.integers(1, 6)] * 3),
    seed=st.integers(),
    own_test=st.booleans(),
)
def test_parts_are_disjoint_and_repeatable(
    tmp_path_factory: pytest.TempPathFactory,
    words: list[str],
    sizes: tuple[int, int, int],
    seed: int,
    own_test: bool,
) -> None:
    folder = tmp_path_factory.mktemp("x")
    rows = [{"prompt": w, "chosen": f"c{i}", "rejected": "r"} for i, w in enumerate(words)]
    values: dict[str, Any] = {"source": "pairs", "path": jsonl(folder / "a.jsonl", rows)}
    for part, size in zip(("d1", "d2", "test"), sizes, strict=True):
        values[part] = {"count": size}
    if own_test:
        values["test"]["path"] = jsonl(folder / "b.jsonl", rows[::2])
    try:
        parts, unusable = read(seed, **values)
    except DataError:
        assert own_test or len(set(words) - {""}) < sum(sizes), "refused only where rows are few"
        return
    assert_contract(parts, unusable)
    assert {part: len(frame) for part, frame in parts.items()} == dict(
        zip(("d1", "d2", "test"), sizes, strict=True)
    )
    again, aside = read(seed, **values)
    assert aside.equals(unusable)
    assert all(frame.equals(again[part]) for part, frame in parts.items())


# ---------------------------------------------------------------------------- mistakes


def one_line(**values: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(**values)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_fewer_than_asked(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [*plain(9), *plain(1), {**plain(1, 9)[0], "chosen": ""}])
    four = {"count": 4}
    message = one_line(source="pairs", path=path, d1=four, d2=four, test=four)
    assert "data.d2 asks for 4 rows, 1 usable rows are left for it" in message
    assert "1 duplicate_prompt, 1 empty_chosen" in message
    assert "set data.d2.count to 1 or less" in message
    message = one_line(source="pairs", path=path, d1=four, d2={"count": 9}, test={"count": 5})
    assert "no usable row is left" in message


def test_no_usable_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "a"}])
    message = one_line(
        source="pairs", path=path, d1={"count": 1}, d2={"count": 1}, test={"count": 1}
    )
    assert "no usable row" in message
    assert "1 same_sides" in message


def test_parts_that_share_need_counts(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", plain(9))
    message = one_line(source="pairs", path=path, d1={"count": 2})
    assert message.endswith("set data.test.count, data.d2.count")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.jsonl", b"", "cannot read"),
        (
            "x.jsonl",
            b'{"prompt": "p", "chos',
            "x.jsonl, line 1: it is cut off; the lines before it are whole; mend the file",
        ),
        (
            "x.jsonl",
            b'{"prompt": "p"}\n\n{"prompt": nan}\n',
            "x.jsonl, line 3: it is no JSON at column 12",
        ),
        ("x.jsonl", b'\xff\xfe{"prompt": 1}\n', "cannot read"),
        ("x.jsonl", b"7\n", "cannot read"),
        (
            "x.json",
            b"[1, 2",
            "x.json, line 1: it holds a number, not an object such as {...}; mend the file",
        ),
        ("x.jsonl.gz", b"no gzip", "cannot read"),
        ("x.jsonl.gz", gzip.compress(b'{"prompt": "p"}\n' * 99, mtime=0)[:-9], "cannot read"),
        ("x.parquet", b"PAR1" + b"\0" * 40, "cannot read"),
        ("x.jsonl", b'{"prompt": "a"}\n{"prompt": [{"role": "user", "content": "b"}]}\n', "mixes"),
        ("x.jsonl", b'{"prompt": "a"}\n{"prompt": {"role": "user", "content": "b"}}\n', "mixes"),
        ("x.jsonl", b'{"prompt": [{"from": "user"}], "chosen": "a", "rejected": "b"}\n', "role"),
        ("x.jsonl", b'{"prompt": {"a": 1}, "chosen": "a", "rejected": "b"}\n', "must be text"),
        ("x.txt", None, "no file"),
    ],
)
def test_unreadable_files(name: str, content: bytes | None, expected: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    one = {"count": 1}
    assert expected in one_line(source="pairs", path=str(path), d1=one, d2=one, test=one)


def test_a_cut_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pl.DataFrame(plain(50)).write_parquet(path)
    whole = path.read_bytes()
    one = {"count": 1}
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "cut short" in one_line(source="pairs", path=str(path), d1=one, d2=one, test=one)
    assert "is a folder" in one_line(source="pairs", path=str(tmp_path), d1=one, d2=one, test=one)


@pytest.mark.parametrize("source", ["hh_rlhf", "pku_saferlhf"])
def test_another_dataset_than_the_source_says(source: str, tmp_path: Path) -> None:
    one = {"count": 1}
    path = jsonl(tmp_path / "x.jsonl", [{"response_0": 1, "text": "x"}])
    assert "no column" in one_line(source=source, path=path, d1=one, d2=one, test=one)
    number = [{"response_0": 1, "response_1": 2, "chosen": 1, "rejected": 2}]
    number[0] |= {"better_response_id": 1}
    if source == "pku_saferlhf":
        number[0]["prompt"] = 3
    path = jsonl(tmp_path / "y.jsonl", number)
    assert "no text" in one_line(source=source, path=path, d1=one, d2=one, test=one)


values_ = st.none() | st.integers(0, 2) | st.sampled_from(["", "a", "\n\nHuman: a\n\nAssistant: b"])
turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "x"]), "content": values_}
)
cells = values_ | st.lists(turns | st.none(), max_size=3) | st.lists(values_, max_size=2) | turns
names = ["prompt", "chosen", "rejected", "response_0", "response_1", "better_response_id", "split"]


@settings(max_examples=150, deadline=None)
@given(
    source=st.sampled_from(["pairs", "hh_rlhf", "pku_saferlhf"]),
    rows=st.lists(st.dictionaries(st.sampled_from(names), cells), max_size=4)
    | st.lists(st.fixed_dictionaries(dict.fromkeys(names[:-1], values_)), min_size=3, max_size=9),
    split=st.sampled_from([None, "a"]),
)
def test_junk_rows(
    tmp_path_factory: pytest.TempPathFactory,
    source: str,
    rows: list[dict[str, Any]],
    split: str | None,
) -> None:
    path = jsonl(tmp_path_factory.getbasetemp() / "junk.jsonl", rows)
    part = {"count": 1, "split": split}
    try:
        parts, unusable = read(source=source, path=path, d1=part, d2=part, test=part)
    except DataError as error:
        assert "\n" not in str(error)
        return
    assert_contract(parts, unusable)


def test_what_a_row_of_text_cannot_say_is_put_aside_by_name(tmp_path: Path) -> None:
    """PROMPTS is text: what would be lost in it is no shorter row, but none."""
    call = [{"type": "function", "function": {"name": "f", "arguments": {}}}]
    talk = [assistant("x"), user("y"), assistant("z")]
    cases: dict[str, dict[str, Any]] = {
        "tool_call": {"chosen": [{**assistant("x"), "tool_calls": call}]},
        "several_messages": {"chosen": talk},
        "media": {"images": ["c.png"]},
        "tools": {"tools": json.dumps(call)},
        "rendered": {"prompt": [user("<|im_start|>user\ne<|im_end|>")]},
    }
    rows = [
        {
            "prompt": [user(row["prompt"])],
            "chosen": [assistant(row["chosen"])],
            "rejected": [assistant(row["rejected"])],
        }
        for row in plain(8)
    ]
    one = {"count": 1}
    rich = [{**row, **more} for row, more in zip(rows[3:], cases.values(), strict=True)]
    path = jsonl(tmp_path / "x.jsonl", [*rows[:3], *rich])
    accounts: Accounts = {}
    _, unusable = read_parts(
        make(source="pairs", path=path, d1=one, d2=one, test=one), 0, {}, accounts
    )
    assert unusable["reason"].to_list() == list(cases)
    facts = accounts[path].facts()
    assert facts["left_out"] == dict.fromkeys(sorted(cases), 1) and facts["rows_read"] == 8
    assert "f" in json.loads(unusable["text"][0])["chosen"][0]["tool_calls"][0]["function"]["name"]


# ---------------------------------------------------------------------------- pins and the Hub


def test_a_local_pin_is_its_content(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", plain(1))
    pin = resolve(path, "main")
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", pin)
    assert resolve(path, "main") == pin
    jsonl(tmp_path / "x.jsonl", plain(2))
    assert resolve(path, "main") != pin
    with pytest.raises(DataError, match="no file"):
        resolve("missing.jsonl", "main")


def test_the_hub_is_read_at_the_pin(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    calls = []

    def load(path: str, **kwargs: Any) -> Any:
        calls.append((path, kwargs))
        start = 0 if kwargs["split"] == "train" else 100
        return datasets.Dataset.from_list(plain(10, start))

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = make(
        source="pairs",
        path="org/name",
        subset="folder",
        d1={"count": 4},
        d2={"count": 4, "split": "train"},
        test={"split": "test"},
    )
    parts, unusable = read_parts(data, 0, {"org/name": "abc123"})
    assert_contract(parts, unusable)
    assert [len(parts[part]) for part in ("d1", "d2", "test")] == [4, 4, 10]
    pinned = {"data_dir": "folder", "revision": "abc123"}
    assert calls == [
        ("org/name", {**pinned, "split": "test"}),
        ("org/name", {**pinned, "split": "train"}),
    ]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError('Unknown split "trian". Should be one of [train].\nmore'), "Unknown split"),
        (ConnectionError("no route"), "the Hub cannot be reached"),
    ],
)
def test_trouble_with_the_hub(
    error: Exception, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    hub = pytest.importorskip("huggingface_hub")

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(hub.HfApi, "dataset_info", refuse)
    one = {"count": 1}
    assert expected in one_line(source="hh_rlhf", path="org/name", d1=one, d2=one, test=one)
    with pytest.raises(DataError, match="dataset org/name"):
        resolve("org/name", "main")


def test_importing_is_light() -> None:
    heavy = "{'torch', 'datasets', 'huggingface_hub', 'transformers'}"
    code = f"import sys, macpo_data.sources.parts; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
