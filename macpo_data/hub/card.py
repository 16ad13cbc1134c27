"""The dataset card: what a round is, in figures and words, with a snippet for each trainer."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import yaml

from macpo_data.hub.index import Entry, Index
from macpo_data.methods import SHARPENING, called, methods

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


def card(index: Index, repo: str | None, suffix: str = "") -> str:
    """README.md of the repository.

    Args:
        index: all that it holds.
        repo: its id on the Hub, if it has one.
        suffix: of the default configuration, such as `_full`.
    """
    newest = default_of(index)
    entry = index[newest]
    place = repo or "PATH/OF/THIS/FOLDER"
    method = made_by(_called(entry))
    parts = [
        _metadata(index, newest, suffix),
        f"# {repo or 'Preference pairs, round by round'}\n",
        f"Preference data made round by round {method}. Each round is a dataset, with one "
        "configuration per learner: the agent for whom the pairs were chosen and who is trained on "
        "them. This card is written by `macpo push`; an edit is lost at the next one.\n",
        _rounds(index),
        _facts(newest, entry),
        "## Training on it\n",
        _snippets(newest, place, repo is not None, entry),
        "## Forms\n",
        f"{_forms(newest, entry)}"
        "- `macpo/`: recipe, pinned revisions, manifests and the store's own files; `macpo pull` "
        "checks them against each other.\n",
        _sample(entry),
    ]
    return "\n".join(parts)


def made_by(name: str) -> str:
    """Who made the datasets, and how; of a method of a newer macpo only its name."""
    if name == SHARPENING:
        return f"by a student that learns its likeliest answers: {SHARPENING}"
    known = methods().get(name)
    return known.by if known else f"by the method {name}"


def _called(entry: Entry) -> str:
    manifest = entry["facts"]["manifest"]
    judge = manifest["reads"].get("judge") or {}
    return called(manifest["method"], judge.get("kind"))


def _forms(name: str, entry: Entry) -> str:
    if not _preferences(entry):
        return (
            f"- `{name}`: `prompt` and `completion` as message lists, a row for each turn, with "
            "where the completion came from.\n"
            f"- `{name}_messages`: whole conversations as `messages`, and nothing else.\n"
        )
    return (
        f"- `{name}`: `prompt`, `chosen`, `rejected` as message lists, with where each side came "
        "from and how it scored; `chosen_text` and `rejected_text` are the same as text.\n"
        f"- `{name}_full`: the prompt inside both sides; on the branch `full` it is the default.\n"
        f"- `{name}_sharegpt`: each side one message.\n"
    )


def _preferences(entry: Entry) -> bool:
    """Whether an entry has rejected answers; one that an older macpo wrote has."""
    return bool(entry["facts"].get("preferences", True))


def _metadata(index: Index, newest: str, suffix: str) -> str:
    licence = index[newest]["facts"]["licence"]
    known = {name: config for e in index.values() for name, config in e["configs"].items()}
    rows = known[newest]["rows"]
    default = f"{newest}{suffix}" if f"{newest}{suffix}" in known else newest
    configs = []
    infos = []
    for name in sorted(known, key=lambda n: (n != default, n)):
        config = known[name]
        configs.append(
            {"config_name": name}
            | ({"default": True} if name == default else {})
            | {"data_files": [{"split": "train", "path": config["files"]}]}
        )
        split = {"name": "train", "num_bytes": config["bytes"], "num_examples": config["rows"]}
        infos.append(
            {
                "config_name": name,
                "features": config["features"],
                "splits": [split],
                "download_size": config["download"],
                "dataset_size": config["bytes"],
            }
        )
    values = {
        # Stated by the source, or else said to be unknown.
        "license": licence or "unknown",
        "task_categories": ["text-generation"],
        "size_categories": [next((name for most, name in SIZES if rows < most), "n>1M")],
        "tags": ["preference", "dpo", "rlhf", "synthetic", "trl", MACPO],
        "configs": configs,
        "dataset_info": infos,
    }
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{text}---\n"


def _rounds(index: Index) -> str:
    rows = []
    for name, entry in sorted(index.items(), key=lambda e: (-e[1]["round"], not e[1]["main"])):
        summary = entry["facts"]["manifest"]["summary"]
        counts = [summary["pairs"], summary["prompts"], sum(summary["dropped_by_reason"].values())]
        rows.append(
            [f"`{name}`", str(entry["round"]), entry["learner"], *(f"{n:,}" for n in counts)]
        )
    return _table(["configuration", "round", "learner", "pairs", "prompts", "dropped"], rows)


def _facts(name: str, entry: Entry) -> str:
    facts = entry["facts"]
    manifest = facts["manifest"]
    summary, reads = manifest["summary"], manifest["reads"]
    data = facts["data"]
    named = facts.get("sources") or [data.get("path") or f"the source `{data['source']}`"]
    source = ", ".join(dict.fromkeys(map(str, named)))
    sampling = _section(reads, "sampling") or reads.get("mixture", {}).get("sampling")
    pins = ", ".join(f"{path} at {pin}" for path, pin in facts["pins"].items() if pin)
    lines = [
        f"## {name}\n",
        f"Round {entry['round']} for {entry['learner']} (base {facts['learner_base']}), written by "
        f"macpo {manifest['versions'].get('macpo', '')} with the method {_called(entry)}; "
        f"fingerprint `{manifest['fingerprint']}`, content `{manifest['content']}`.\n",
        f"- Prompts: {source}" + (f" ({pins})" if pins else "") + ".",
        f"- Licence: {facts['licence']}, as the source states it."
        if facts["licence"]
        else "- Licence: the source states none that macpo could read; ask it before you use them.",
        f"- Pairs: {summary['pairs']:,} of {summary['prompts']:,} prompts, out of "
        f"{summary['candidates']:,} candidates.",
        f"- Dropped, by reason: {_counts(summary['dropped_by_reason'])}.",
        f"- Caught by a filter, by reason: {_counts(summary['caught_by_reason'])}.",
        f"- Chosen, by who wrote it: {_counts(summary['chosen_by_agent'])}.",
        f"- Sampling: {_settings(sampling)}; seed {reads.get('seed')}.",
        f"- Selection: {_settings(_section(reads, 'select'))}.",
        f"- Versions: {_settings(manifest['versions'])}, python {manifest['python']}.\n",
    ]
    if reads.get("engine", {}).get("fake"):
        lines.insert(
            1, "**Written by the fake engine, which answers without a model: for tests.**\n"
        )
    if facts["agents"]:
        lines.append(
            _table(
                [
                    "who spoke", "role", "base", "revision",
                    "adapter", "sha256", "template", "its sha256",
                ],
                [
                    [
                        agent["policy"], agent["role"], agent["base"],
                        agent["base_revision"] or "", agent["adapter"] or "none",
                        (agent["adapter_sha256"] or "")[:16], agent["chat_template"],
                        (agent["template_sha256"] or "")[:16],
                    ]
                    for agent in facts["agents"]
                ],
            )
        )  # fmt: skip
    for start in facts["starts"]:
        against = f", reference {start['reference']}" if start["reference"] else ""
        sha = f" (sha256 `{start['adapter_sha256']}`)" if start["adapter_sha256"] else ""
        if start["needs"] == "reference":
            lines.append(f"Its reference is {start['start']}{sha}.\n")
            continue
        lines.append(
            f"Training {start['trains']} ({start['objective']}) starts from {start['start']}{sha}"
            f"{against}.\n"
        )
    if facts["quantiles"]:
        lines.append(
            _table(
                ["quantile", *(f"{q:.0%}" for q in QUANTILES)],
                [[name, *map(str, values)] for name, values in facts["quantiles"].items()],
            )
        )
    return "\n".join(lines)


def _snippets(name: str, place: str, tagged: bool, entry: Entry) -> str:
    if not _preferences(entry):
        return _sft_snippets(name, place, tagged, entry)
    dpo = entry["facts"]["dpo"]
    beta, gamma, tag = dpo["beta"], dpo["gamma"], entry["tag"]
    snippets = {
        "macpo": f"macpo train --dataset {place} --config {name} --base BASE --out DIR"
        + (f" --revision {tag}" if tagged else ""),
        "datasets": f'load_dataset("{place}", "{name}", split="train"'
        + (f', revision="{tag}")' if tagged else ")"),
        "TRL": f"trl dpo --dataset_name {place} --dataset_config {name} --loss_type sigmoid sft "
        f"--loss_weights 1.0 {gamma} --beta {beta} --model_name_or_path BASE --output_dir DIR",
        "axolotl": f"rl: dpo\ndatasets:\n  - path: {place}\n    name: {name}\n    split: train\n"
        + (f"    revision: {tag}\n" if tagged else "")
        + "    type: chat_template.default\n    field_messages: prompt\n"
        "    field_chosen: chosen\n    field_rejected: rejected",
        "LLaMA-Factory": f"stage: dpo\ndataset_dir: REMOTE:{place}\ndataset: {name}\n"
        f"# a copy on disk: dataset_dir: FOLDER, dataset: {name}_local\n"
        f"pref_beta: {beta}\npref_ftx: {gamma}",
        "OpenRLHF (reads the default configuration)": f"--data.dataset {place} "
        "--data.apply_chat_template --data.prompt_key prompt --data.chosen_key chosen "
        "--data.rejected_key rejected",
        "open-instruct (the branch whose default is the full form)": f"--mixer_list {place} 1.0 "
        "--dataset_revision full",
        "alignment-handbook": f"dataset_mixture:\n  datasets:\n    - id: {place}\n"
        f"      config: {name}_full\n      split: train\n      columns: [chosen, rejected]",
        "torchtune": "dataset:\n  _component_: torchtune.datasets.preference_dataset\n"
        f"  source: {place}\n  name: {name}_full\n  column_map: {{chosen: chosen, rejected: "
        "rejected}\n  split: train",
        "NeMo-RL": f"data:\n  dataset_name: BinaryPreferenceDataset\n  data_path: {place}\n"
        f"  subset: {name}\n  split: train\n  prompt_key: prompt\n  chosen_key: chosen_text\n"
        "  rejected_key: rejected_text",
    }
    note = (
        "The SFT term's weight does not carry over: TRL takes the mean over all chosen tokens of a "
        "batch, LLaMA-Factory and OpenRLHF the mean of each answer's mean.\n"
    )
    return f"{_blocks(snippets)}\n{note}"


def _sft_snippets(name: str, place: str, tagged: bool, entry: Entry) -> str:
    revision = f" --revision {entry['tag']}" if tagged else ""
    snippets = {
        "macpo": f"macpo train --dataset {place} --config {name} --base BASE --out DIR{revision} "
        "--set objective=sft --set columns.chosen=completion --set columns.rejected=null",
        "TRL": f"trl sft --dataset_name {place} --dataset_config {name} "
        "--model_name_or_path BASE --output_dir DIR",
        "axolotl": f"datasets:\n  - path: {place}\n    name: {name}_messages\n    split: train\n"
        "    type: chat_template\n    field_messages: messages",
        "LLaMA-Factory": f"stage: sft\ndataset_dir: REMOTE:{place}\ndataset: {name}\n"
        f"# a copy on disk: dataset_dir: FOLDER, dataset: {name}_local",
    }
    return _blocks(snippets)


def _blocks(snippets: dict[str, str]) -> str:
    return "\n".join(f"{trainer}:\n\n```\n{text}\n```\n" for trainer, text in snippets.items())


def _sample(entry: Entry) -> str:
    text = json.dumps(entry["facts"]["sample"], indent=1, ensure_ascii=False)
    # Model text may hold a fence of its own; JSON escapes its line breaks, so none begins a line.
    return f"## A row\n\nLong texts are cut.\n\n```json\n{text}\n```\n"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(c.replace("|", "\\|") for c in r) + " |\n" for r in lines)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{n:,} {what}" for what, n in counts.items()) or "none"


def _section(reads: dict[str, Any], name: str) -> dict[str, Any]:
    """What a step reads of a section of the recipe, as a whole or key by key."""
    keys = {k.removeprefix(f"{name}."): v for k, v in reads.items() if k.startswith(f"{name}.")}
    return {**reads.get(name, {}), **keys}


def _settings(values: dict[str, Any] | None) -> str:
    return ", ".join(f"{k} {v}" for k, v in (values or {}).items()) or "none; a person wrote it"


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 3)


def _short(text: str) -> str:
    return text if len(text) <= SAMPLE_CHARS else text[:SAMPLE_CHARS] + " ..."
