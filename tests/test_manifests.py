"""Manifests as they are read: typed, within bounds, and those of the folder they lie in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from conftest import OpenRun
from hypothesis import given
from hypothesis import strategies as st

from macpo_data.errors import StoreError
from macpo_data.store import manifests
from macpo_data.store.manifests import (
    MANIFEST,
    AdapterManifest,
    DatasetManifest,
    PromptsManifest,
    kind_of,
    read_manifest,
    seal,
)
from macpo_data.store.store import Store
from macpo_run.rounds import Run

ADAPTER = "adapters/student-positive-1-0123abcd"
BARE = {"files": {"a": "0" * 64}, "content": "1" * 64}


def sealed(**facts: object) -> bytes:
    """A manifest that nobody edited since it was written."""
    body = {**BARE, **facts}
    return json.dumps({**body, "seal": seal(body)}).encode()


def reading(content: bytes, name: str = ADAPTER) -> manifests.AnyManifest:
    return read_manifest(content, name, Path("runs/x") / name / MANIFEST)[1]


@pytest.fixture
def run(open_run: OpenRun) -> Run:
    run = open_run()
    run.finish_round(0)
    return run


def test_every_result_of_a_round_is_of_its_kind(run: Run) -> None:
    kinds = {kind_of(name) for name in run.store.names()}
    assert len(kinds) == 6  # prompts, dataset, adapter, samples, scores, probe
    for name in run.store.names():
        manifest = run.store.typed(name, kind_of(name))
        assert manifest and manifest.name == name
        assert manifest.content == (run.store.manifest(name) or {})["content"]
    gen = run.store.typed(run.plan.name(run.select("gen", 0, "student")[0]), DatasetManifest)
    assert gen and gen.summary.pairs == 12 and run.plan.prompts_name in gen.inputs
    with pytest.raises(StoreError, match="no result of this kind"):
        run.store.typed(run.plan.prompts_name, AdapterManifest)
    assert run.store.typed("samples/none", PromptsManifest) is None


def test_what_an_older_macpo_wrote_is_read() -> None:
    """It gave no name, and other keys; so does a newer one."""
    old = reading(sealed(adapter_sha256="2" * 64, unheard={"of": [1, None]}))
    assert isinstance(old, AdapterManifest)
    assert (old.name, old.start, old.inputs) == (None, None, {})


@pytest.mark.parametrize(
    "wrong",
    [
        {"adapter_sha256": 3},
        {},
        {"adapter_sha256": "2", "inputs": ["data/x"]},
        {"adapter_sha256": "2", "round": "1"},
        {"adapter_sha256": "2", "kind": "gen"},
        {"adapter_sha256": "2", "files": {"a": None}},
    ],
)
def test_what_has_another_type_is_refused_though_sealed(wrong: dict[str, object]) -> None:
    with pytest.raises(
        StoreError, match=f"{ADAPTER}/manifest.json was edited or cut short; --redo"
    ):
        reading(sealed(**wrong))


def test_another_results_manifest_is_refused(run: Run) -> None:
    """A folder that was copied to another name, by its fingerprint or by its name."""
    steps = run.select("train", 0)[:2]
    one, other = (run.plan.name(step) for step in steps)
    shutil.rmtree(run.store.path(other))
    shutil.copytree(run.store.path(one), run.store.path(other))
    with pytest.raises(StoreError) as refused:
        run.store.manifest(other)
    message = str(refused.value)
    assert f"{other}/{MANIFEST} is that of another result, {one}" in message and "--redo" in message
    assert run.states()[steps[1]] == "stale"
    run.make("train", 0, redo=True)
    assert run.states()[steps[1]] == "done"
    for facts in {"fingerprint": "ffffffff"}, {"name": "adapters/other"}:
        with pytest.raises(StoreError, match="is that of another result"):
            reading(sealed(adapter_sha256="2", **facts))
    assert reading(sealed(adapter_sha256="2", name=ADAPTER, fingerprint="0123abcd"))


def test_a_file_of_which_the_manifest_says_nothing_is_not_used(run: Run) -> None:
    """Sealed, so that only a stranger or an older macpo can have written it."""
    name = run.plan.name(run.select("gen", 0, "student")[0])
    facts = {**(run.store.manifest(name) or {}), "files": {}}
    (run.store.path(name) / MANIFEST).write_text(json.dumps({**facts, "seal": seal(facts)}))
    with pytest.raises(StoreError, match=r"pairs.parquet is damaged or missing; .* --redo"):
        run.store.read(name, "pairs.parquet")


@pytest.mark.parametrize("bomb", [b"[" * 100_000, b'{"a":' * 5_000 + b"1" + b"}" * 5_000])
def test_a_bomb_is_one_line(bomb: bytes, tmp_path: Path) -> None:
    """Nested so deep that a parser without a bound runs out of stack."""
    store = Store(tmp_path)
    (store.clear(ADAPTER) / MANIFEST).write_bytes(bomb)
    with pytest.raises(StoreError) as refused:
        store.manifest(ADAPTER)
    assert str(tmp_path / ADAPTER / MANIFEST) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_too_large_is_not_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    path = store.clear(ADAPTER) / MANIFEST
    path.write_bytes(sealed(adapter_sha256="2"))
    assert store.manifest(ADAPTER)
    for module in ("manifests", "store"):
        monkeypatch.setattr(f"macpo_data.store.{module}.MAX_BYTES", path.stat().st_size - 1)
    with pytest.raises(StoreError, match="edited or cut short"):
        store.manifest(ADAPTER)


TEXT = st.text(alphabet='a"\\\u00e9\n\u2028\U0001f388', max_size=5)
VALUES = st.integers() | st.floats(allow_nan=False) | TEXT | st.lists(st.floats(-1, 1), max_size=3)


@given(extra=st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES))
def test_the_seal_holds_for_whatever_is_kept(extra: dict[str, object]) -> None:
    """The parser gives back what was written, to the last digit of a number."""
    content = sealed(adapter_sha256="2", **extra)
    facts, _ = read_manifest(content, ADAPTER, Path("x"))
    assert facts == json.loads(content)
    edited = content.replace(b'"adapter_sha256": "2"', b'"adapter_sha256": "3"')
    with pytest.raises(StoreError, match="edited or cut short"):
        read_manifest(edited, ADAPTER, Path("x"))
