"""The figures of a dataset card; the text of the card is in card.md.jinja."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import yaml

from macpo_data.forms import registry
from macpo_data.forms.trainer import Published
from macpo_data.hub.index import Config, Facts, Index
from macpo_data.hub.templates import fill, fill_text
from macpo_data.methods.registry import SHARPENING, called, methods

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
SAMPLE_CHARS = 400
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
MACPO = "macpo"


def measures(pairs: pl.DataFrame) -> pl.DataFrame:
    """Perplexity and length of both sides: all that the quantiles need to see of PAIRS."""
    return pairs.select(
        expression.cast(pl.Float64).alias(f"{side}, {what}")
        for side in ("chosen", "rejected")
        for what, expression in {
            "perplexity": pl.col(f"{side}_perplexity"),
            "tokens": pl.col(f"{side}_num_tokens"),
            "characters": pl.col(side).str.len_chars(),
        }.items()
    )


def statistics(measured: pl.DataFrame, row: dict[str, Any]) -> dict[str, Any]:
    """Quantiles of perplexity and length of both sides, and a sample row.

    Args:
        measured: the measures of all pairs.
        row: one of the pairs.
    """
    quantiles = {
        name: [_rounded(measured[name].quantile(q)) for q in QUANTILES]
        for name in measured.columns
        if measured[name].count()
    }
    sample = {
        "prompt": [{**m, "content": _short(m["content"])} for m in row["prompt"]],
        "prompt_id": row["prompt_id"],
    }
    for side in ("chosen", "rejected"):
        if row[side] is not None:
            sample |= {
                side: [{"role": "assistant", "content": _short(row[side])}],
                f"{side}_agent": row[f"{side}_agent"],
                f"{side}_perplexity": _rounded(row[f"{side}_perplexity"]),
            }
    return {"quantiles": quantiles, "sample": sample}


def default_of(index: Index) -> str:
    """The configuration that is loaded when none is named: the main learner's newest round."""
    return max(index, key=lambda name: (index[name]["main"], index[name]["round"], name))


def made_by(name: str) -> str:
    """Who made the datasets, and how; of a method of a newer macpo only its name."""
    if name == SHARPENING:
        return f"by a student that learns its likeliest answers: {SHARPENING}"
    method = methods().get(name)
    return method.by if method else f"by the method {name}"


def card(index: Index, repo: str | None, suffix: str = "") -> str:
    """README.md of the repository.

    Args:
        index: all that it holds.
        repo: its id on the Hub, if it has one.
        suffix: of the default configuration, such as `_full`.
    """
    newest = default_of(index)
    entry = index[newest]
    facts = entry["facts"]
    manifest = facts["manifest"]
    reads = manifest["reads"]
    named = called(manifest["method"], (reads.get("judge") or {}).get("kind"))
    place, tag = repo or "PATH/OF/THIS/FOLDER", entry["tag"] if repo else None
    dpo = {key: facts["dpo"][key] for key in ("beta", "gamma")}
    preferences = bool(facts.get("preferences", True))  # an older macpo published nothing else
    own, *others = _snippets(preferences, place=place, name=newest, tag=tag, **dpo)
    return fill(
        "card.md.jinja",
        metadata=_metadata(index, newest, suffix),
        repo=repo,
        place=place,
        tag=tag,
        rounds=_rounds(index),
        name=newest,
        round=entry["round"],
        learner=entry["learner"],
        method=named,
        method_words=made_by(named),
        manifest=manifest,
        summary=manifest["summary"],
        fake=reads.get("engine", {}).get("fake"),
        sources=_sources(facts),
        pins=[f"{path} at {pin}" for path, pin in facts["pins"].items() if pin],
        sampling=_section(reads, "sampling") or reads.get("mixture", {}).get("sampling"),
        selection=_section(reads, "select"),
        seed=reads.get("seed"),
        agents=[_agent(each) for each in facts["agents"]],
        levels=[f"{q:.0%}" for q in QUANTILES],
        quantiles=[[name, *values] for name, values in facts["quantiles"].items()],
        preferences=preferences,
        own=own,
        others=others,
        forms=registry.forms(preferences),
        sample=_inert_json(facts["sample"]),
        **{key: facts[key] for key in ("learner_base", "licence", "starts")},
    )


def _inert_json(value: Any) -> str:
    """JSON that shows a person all that is in it.

    Model text may hold a fence of its own; its line breaks are escaped, so none begins a line. What
    is not printable, such as a mark that turns the direction of the text, is escaped as well.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def _metadata(index: Index, newest: str, suffix: str) -> str:
    """The YAML at the top, which the Hub and `datasets` read."""
    configs = {name: config for e in index.values() for name, config in e["configs"].items()}
    rows = configs[newest]["rows"]
    default = f"{newest}{suffix}" if f"{newest}{suffix}" in configs else newest
    order = sorted(configs, key=lambda name: (name != default, name))
    values = {
        # Stated by the source, or else said to be unknown.
        "license": index[newest]["facts"]["licence"] or "unknown",
        "task_categories": ["text-generation"],
        "size_categories": [next((name for most, name in SIZES if rows < most), "n>1M")],
        "tags": ["preference", "dpo", "rlhf", "synthetic", "trl", MACPO],
        "configs": [
            {"config_name": name}
            | ({"default": True} if name == default else {})
            | {"data_files": [{"split": "train", "path": configs[name]["files"]}]}
            for name in order
        ],
        "dataset_info": [_info(name, configs[name]) for name in order],
    }
    return str(yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000))


def _info(name: str, config: Config) -> dict[str, Any]:
    split = {"name": "train", "num_bytes": config["bytes"], "num_examples": config["rows"]}
    return {
        "config_name": name,
        "features": config["features"],
        "splits": [split],
        "download_size": config["download"],
        "dataset_size": config["bytes"],
    }


def _rounds(index: Index) -> list[list[object]]:
    """A row for each dataset: the newest round first, its main learner on top."""
    rows: list[list[object]] = []
    for name, entry in sorted(index.items(), key=lambda e: (-e[1]["round"], not e[1]["main"])):
        summary = entry["facts"]["manifest"]["summary"]
        counts = [summary["pairs"], summary["prompts"], sum(summary["dropped_by_reason"].values())]
        numbers = [f"{n:,}" for n in counts]
        rows.append([f"`{name}`", entry["round"], entry["learner"], *numbers])
    return rows


def _sources(facts: Facts) -> list[str]:
    """What the prompts come from; an older macpo said it less well."""
    data = facts["data"]
    named = facts.get("sources") or [data.get("path") or f"the source `{data['source']}`"]
    return list(dict.fromkeys(map(str, named)))


def _agent(facts: dict[str, Any]) -> list[str]:
    """Who spoke, and with what weights and template: a row."""
    return [
        facts["policy"],
        facts["role"],
        facts["base"],
        facts["base_revision"] or "",
        facts["adapter"] or "none",
        (facts["adapter_sha256"] or "")[:16],
        facts["chat_template"],
        (facts["template_sha256"] or "")[:16],
    ]


def _snippets(preferences: bool, *, name: str, **values: Any) -> list[dict[str, str]]:
    """What a person types for each trainer, our own first."""
    filled = []
    for trainer in (registry.OWN, *registry.OTHERS):
        use = trainer.pairs if preferences else trainer.fine_tuning
        if trainer.reads_published and use and isinstance(use.form, Published):
            config = f"{name}{use.form.suffix}"
            text = fill_text(use.snippet, name=name, config=config, **values)
            filled.append({"title": trainer.title, "text": text})
    return filled


def _section(reads: dict[str, Any], name: str) -> dict[str, Any]:
    """What a step reads of a section of the recipe, as a whole or key by key."""
    keys = {k.removeprefix(f"{name}."): v for k, v in reads.items() if k.startswith(f"{name}.")}
    return {**reads.get(name, {}), **keys}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 3)


def _short(text: str) -> str:
    return text if len(text) <= SAMPLE_CHARS else text[:SAMPLE_CHARS] + " ..."
