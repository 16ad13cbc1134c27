"""No key stands in a recipe, by name or by value, and none of the environment reaches a file."""

from __future__ import annotations

import os
import random
import string
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hub_server
import openai_server
import pytest
import yaml
from conftest import RECIPE, Macpo
from test_endpoints import moaa
from test_house import ROOT

from macpo_data.errors import RecipeError
from macpo_data.loading.load import load_recipe, load_settings
from macpo_data.recipe import secrets
from macpo_data.recipe.recipe import Recipe
from macpo_data.recipe.section import Section

DRAWN = random.Random(0)
ALNUM = string.ascii_letters + string.digits
CANARY = "zx9Kq27LmVw4RtYb8NcHs3Pd"  # in each of the keys below


def drawn(length: int, of: str = ALNUM) -> str:
    return "".join(DRAWN.choice(of) for _ in range(length))


VALUES = {
    "openai": f"sk-proj-{drawn(40)}",
    "openai, older": f"sk-{drawn(48)}",
    "short": "sk-abc123def",
    "anthropic": f"sk-ant-api03-{drawn(60, ALNUM + '-_')}",
    "openrouter": f"sk-or-v1-{drawn(64, '0123456789abcdef')}",
    "hub": f"hf_{drawn(34)}",
    "github": f"ghp_{drawn(36)}",
    "github, fine": f"github_pat_{drawn(22)}_{drawn(50)}",
    "slack": f"xoxb-{drawn(12, string.digits)}-{drawn(24)}",
    "aws": f"AKIA{drawn(16, string.ascii_uppercase + string.digits)}",
    "google": f"AIza{drawn(35)}",
    "gitlab": f"glpat-{drawn(20)}",
    "groq": f"gsk_{drawn(52)}",
    "nvidia": f"nvapi-{drawn(60)}",
    "token of the web": f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.{drawn(43)}",
    "pem": "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA",
    "bearer": "Bearer abcdef0123",
    "basic": "Basic dXNlcjpwYXNzd29yZA==",
    "in a url": "https://user:pass@host/v1",
    "in a query": "https://host/v1?a=b&api_key=hunter",
    "aws, its secret": "wJ4lrXUt2FEm9/K7MdENg/bPx5fiCYe8AmPlEkE3",
    "in a path": f"https://host/v1/{drawn(36)}/chat",
    "drawn": CANARY,
    "hexadecimal": drawn(64, "0123456789abcdef"),
    "hub, an organisation's": f"api_org_{drawn(34, string.ascii_letters)}",
    "slack, a hook": "https://hooks.slack.com/services/TLHOM6T1UA/BBTOFORVR7/ybhvwihqXjRKcwefUgtu",
    "telegram": "5199876152:AAqpeumSVsoNBTYhKKbJnhEGQzYvKkKjJRv",
    "discord": f"M{drawn(23)}.{drawn(6)}.{drawn(27)}",
    "stripe": "sk_live_gASKkIxgPXiOYsEXSWPrfgXf",
    "twilio": "SKa095f2cfaf3ef6b176319eacf284abfb",
    "google, an app's": "GOCSPX-DqcfoDdmyTQWUtaxkDZzxGnL",
    "google, to refresh": f"1//0{drawn(40)}",
    "docker": "dckr_pat_vjpxgxffnFpciixBzlpQPGJ",
    "gitlab, a runner's": "glrt-YaRsYkrzzYnMSyiJMoSi",
    "putty": "PuTTY-User-Key-File-2: ssh-rsa",
    "der": f"MIIEvQIBADANBgkqhkiG9w0BAQEFAASC{'Ab' * 20}",
    "a hash of a password": "$2b$12$dsxPgVDmUQqzIEuVxmKfOJSsxUxYxjHCxGgSkxxAdpDxyxzyCkeBD",
    "database": "postgresql://admin:hunter2@db/x",
    "database, with a slash": "postgres://u:pa/ss@h/db",
    "database, no user": "redis://:hunter2@host:6379/0",
    "oracle": "jdbc:oracle:thin:scott/tiger@host:1521:x",
    "odbc": "Server=tcp:x;Database=y;Uid=me;Pwd=hunter2;",
    "libpq": "host=db user=me password=hunter2",
    "netrc": "machine h login me password hunter2",
    "a variable": "OPENAI_API_KEY=hunter",
    "a variable, quoted": "env OPENAI_API_KEY='hunter' run",
    "an option": "serve --api-key hunter",
    "a header": "X-Api-Key: hunter",
    "a header, in two words": "Authorization: Token hunter",
    "curl": "curl -u somebody:hunter2 https://host/v1",
    "curl, in full": "--proxy-user='somebody:hunter2'",
    "a uuid": "11111111-2222-4333-8444-55555555555e",
    "a number in groups": "AAAABBBB_CCCC1111_DDDDEEEE_FFFF2222",
}
NAMES = [
    "token", "hf_token", "auth", "bearer", "key", "private_key", "subscription-key", "pwd",
    "pass", "passwd", "cookie", "session", "signature", "headers", "api_key", "apiKey",
    "X-Api-Key", "Authorization", "password", "client_secret", "access_token", "accessToken",
    "extra_headers", "session_id", "privateKey", "credentials", "sessionToken",
    "openai_api_key", "Ocp-Apim-Subscription-Key", "set-cookie", "passphrase",
]  # fmt: skip
HARMLESS_NAMES = [
    "max_tokens", "stop_token_ids", "prompt_cache_key", "top_k", "min_tokens",
    "skip_special_tokens", "eos_token_id", "logprobs", "logit_bias", "truncate_prompt_tokens",
    "max_completion_tokens", "chat_template_kwargs", "api_key_env", "tokenizer",
    "reasoning_effort", "bos_token", "pad_token", "authors", "keyword", "monkey", "keep",
    "compass", "session_length", "return_tokens_as_token_ids", "cache_salt", "user",
    "safety_identifier", "metadata", "add_special_tokens", "priority", "request_id",
    "guided_json", "response_format", "bypass", "signs", "tokens",
]  # fmt: skip
HARMLESS = [
    line.strip()
    for line in """
    meta-llama/Meta-Llama-3.1-8B-Instruct
    OPENAI_API_KEY=$OPENAI_API_KEY
    serve --api-key $KEY --max-tokens 12 --tokenizer gpt2
    sort_key=name max_tokens=12 pad_token=<pad>
    Authorization: {token}
    docker run -u 1000:1000 image
    curl -u $USER:$PASSWORD https://host
    python -u train.py
    http://host:8000/v1/@latest
    Never tell the password of anybody
    What is the capital of France?
    Qwen/Qwen2.5-72B-Instruct-GPTQ-Int4
    mistralai/Mixtral-8x22B-Instruct-v0.1
    NousResearch/Nous-Hermes-2-Mixtral-8x7B-DPO
    TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T
    deepseek-ai/DeepSeek-R1-Distill-Qwen-32B
    nvidia/Llama-3_1-Nemotron-51B-Instruct
    HuggingFaceTB/SmolLM2-1.7B-Instruct
    microsoft/Phi-3-medium-128k-instruct
    allenai/OLMo-2-1124-13B-Instruct
    CohereForAI/c4ai-command-r-plus-08-2024
    EleutherAI/pythia-6.9b-deduped
    bigscience/bloomz-7b1-mt
    stabilityai/stablelm-2-zephyr-1_6b
    TheBloke/WizardLM-1.0-Uncensored-Llama2-13B-GPTQ
    Helsinki-NLP/opus-mt-sk-en
    skt/A.X-4.0-Light
    gpt-4o-mini-2024-07-18
    gpt-3.5-turbo-instruct-0914
    claude-3-5-sonnet-20241022
    gemini-1.5-pro-latest
    accounts/fireworks/models/llama-v3p1-405b-instruct
    llama-3.3-70b-versatile
    Qwen2.5-Coder-32B-Instruct-AWQ-4bit-64g
    Meta-Llama-3.1-70B-Instruct-Turbo-128K-FP8
    Llama3.1Nemotron70BInstructHF
    DeepSeek-R1-Distill-Llama-70B-GGUF-Q4_K_M
    ft:gpt-4o-mini-2024-07-18:my-org:custom:9AbCdEfG
    OpenAssistant/reward-model-deberta-v3-large-v2
    sfairXC/FsfairX-LLaMA3-RM-v0.1
    anthropic.claude-3-5-sonnet-20240620-v1:0
    us-east-1.meta.llama3-2-90b-instruct-v1:0
    world:weak-a
    main
    refs/pr/3
    2f0c1e3a
    /home/user/models/3f8a9c1d2e4b5a6978/checkpoint-1200
    ~/cache/models--meta-llama--Llama-2-7b/snapshots/01c7f73d771dfac7d292323805ebc428287df4f9
    ./data/my_pairs_2024-05-01_v3_final_really.jsonl
    You are a helpful assistant. The bearer of this letter, Bearer of bad news, basic manners.
    Summarise https://example.org/some/long/path-with-words/2024/05/article-name-here.html
    http://localhost:8000/v1
    http://[::1]:8000/v1
    https://my-deployment-eastus2.openai.azure.com/openai/deployments/gpt-4o-mini-2024-07-18
    https://abcd1234.us-east-1.aws.endpoints.huggingface.cloud/v1
    sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    OPENAI_API_KEY
    MY_COMPANY_VERY_LONG_ENVIRONMENT_VARIABLE_2
    prefers_short_answers_over_long_ones_without_reason
    quickstart-20241015T101112Z-seed3
    """.strip().splitlines()
]


def at_every_depth(secret: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Places of a recipe, each with the recipe that has it there."""
    endpoint = {"base_url": "http://localhost:1/v1", "model": "m"}
    spoken: dict[str, dict[str, Any]] = {
        "extra.a.b": {"extra": {"a": [{"b": secret}]}},
        "model": {"model": secret},
        "base_url": {"base_url": secret},
        "api_key_env": {"api_key_env": secret},
    }
    for place, more in spoken.items():
        values = yaml.safe_load(RECIPE)
        values["agents"]["p"] = {"role": "proposer", "endpoint": endpoint | more}
        yield f"agents.p.endpoint.{place}", values
    for place in ("hub", "data.path", "agents.student.base", "agents.student.revision", "run"):
        values = yaml.safe_load(RECIPE)
        at = values
        *keys, last = place.split(".")
        for key in keys:
            at = at[key]
        at[last] = secret
        yield place, values


@pytest.mark.parametrize("kind", VALUES)
def test_a_value_is_refused_wherever_it_stands(kind: str, tmp_path: Path) -> None:
    value = VALUES[kind]
    for place, values in at_every_depth(value):
        path = tmp_path / "r.yaml"
        path.write_text(yaml.safe_dump(values))
        with pytest.raises(RecipeError) as refused:
            load_recipe(str(path))
        (problem,) = refused.value.problems
        assert problem.startswith(f"{place}: "), problem
        assert value not in str(refused.value) and value[6:18] not in str(refused.value)
        wanted = "name an environment variable" if place.endswith("api_key_env") else "api_key_env"
        assert wanted in problem and ("HF_TOKEN" in problem or ".endpoint." in place)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_refused_wherever_it_stands(name: str, tmp_path: Path) -> None:
    values = yaml.safe_load(RECIPE)
    extra = {"a": [{name: "hunter two"}], "b": {name: {"x": ["hunter two"]}}, "c": {name: 123456}}
    endpoint = {"base_url": "http://localhost:1/v1", "model": "m", "extra": extra}
    values["agents"]["p"] = {"role": "proposer", "endpoint": endpoint}
    values[name] = values["data"][name] = "hunter two"
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(RecipeError) as refused:
        load_recipe(str(tmp_path / "r.yaml"))
    places = {problem.partition(": ")[0] for problem in refused.value.problems}
    inside = {f"a.{name}", f"b.{name}.x", f"c.{name}"}
    assert places == {name, f"data.{name}", *(f"agents.p.endpoint.extra.{i}" for i in inside)}
    assert "hunter" not in str(refused.value)
    assert secrets.problems({name: None, "x": {name: True}}) == []


@pytest.mark.parametrize("text", ["a=", "://a:", "--a ", "password ", "a:b@", "M"])
def test_no_text_takes_long(text: str) -> None:
    """Half a megabyte of what a pattern begins with: a pattern that looks back takes minutes."""
    begun = time.process_time()
    secrets.is_secret(text * (500_000 // len(text)))
    assert time.process_time() - begun < 10


def test_no_false_alarm() -> None:
    assert len(HARMLESS) == 60 and len({*HARMLESS}) == 60
    assert [text for text in HARMLESS if secrets.problems({"x": text})] == []
    assert [name for name in HARMLESS_NAMES if secrets.problems({name: "text"})] == []
    # Neither a commit or a hash where one belongs, nor a schema's names, nor an agent's.
    commit = "01c7f73d771dfac7d292323805ebc428287df4f9"
    schema = {"properties": {"token": {"type": "string"}, "key": {"type": "string"}}}
    fine = {"revision": commit, "guided_json": schema, "agents": {"key": {"role": "teacher"}}}
    assert secrets.problems(fine) == []
    assert secrets.problems({"model": commit}) != []
    assert {name for section in sections(Recipe) for name in section.model_fields if
            secrets.is_secret_name(name)} == set()  # fmt: skip


def sections(model: type[Section]) -> Iterator[type[Section]]:
    from macpo_data.loading.write import _sections

    return _sections(model)


def test_every_shipped_recipe_and_study_is_without_one() -> None:
    paths = sorted((ROOT / "recipes").rglob("*.yaml"))
    assert len(paths) > 15
    assert [p.name for p in paths if secrets.problems(yaml.safe_load(p.read_text()))] == []


def test_most_of_what_is_drawn_is_noticed() -> None:
    """Of 24 letters and digits, which no service marks as its key."""
    seen = sum(secrets.is_secret(drawn(24)) for _ in range(1000))
    assert seen > 900


def test_every_uuid_is_noticed() -> None:
    """Some services give them as keys. Alone, and inside a text."""
    for _ in range(1000):
        key = str(uuid.UUID(int=DRAWN.getrandbits(128), version=4))
        assert all(map(secrets.is_secret, (key, key.upper(), f"ask with {key} there"))), key


@pytest.mark.parametrize(
    "args",
    [
        ["status", "--set", f"agents.student.base=sk-proj-{CANARY}"],
        ["status", "--set", f"hf_token={CANARY}"],
        ["status", "--set", f"dpo.beta=hf_{CANARY}"],
        ["status", "--set", f"dpo.loss=hf_{CANARY}"],
        ["status", "--set", f"sk-proj-{CANARY}"],
        ["status", "--set", f"sk-proj-{CANARY}=1"],
        ["status", "--set", f"run.sk-proj-{CANARY}.x=1"],
        ["status", "--set", f"dpo.beta=[hf_{CANARY}"],
        ["push", "--round", "0", "--to", "tree", "--set", f"data.path=https://u:{CANARY}@host/x"],
        ["train", "--dataset", "x", "--base", "y", "--out", "z", "--set", f"engine.key={CANARY}"],
        ["train", "--dataset", "x", "--base", "y", "--out", "z", "--set", f"sft.x=hf_{CANARY}"],
        ["sweep", "--grid", f"agents.student.base=a,hf_{CANARY}"],
        ["sweep", "--grid", f"hf_{CANARY}"],
        ["sweep", "--seeds", "2", "--set", f"agents.student.base=hf_{CANARY}"],
        ["doctor", "--set", f"agents.student.base=hf_{CANARY}"],
        ["report", "--set", f"agents.student.base=hf_{CANARY}"],
    ],
)
def test_nothing_that_is_said_repeats_it(args: list[str], macpo: Macpo, tmp_path: Path) -> None:
    done = macpo(*args)
    assert done.returncode == 1, done.stdout + done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert not any(CANARY.encode() in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


@pytest.mark.parametrize("key", ["agents.student.chat_template=FILE", "framing.positive=FILE"])
def test_a_text_that_is_published_with_the_recipe(
    key: str, macpo: Macpo, recipe_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.jinja").write_text(f"{{{{ messages }}}}\n{{# sk-proj-{CANARY} #}}")
    words = ["--set", "negatives_by=framing"]
    done = macpo("status", "-r", recipe_file, *words, "--set", key.replace("FILE", "./text.jinja"))
    assert done.returncode == 1 and CANARY not in done.stdout + done.stderr
    assert "text.jinja, line 2: looks like a secret" in done.stderr, done.stderr


def test_settings_of_a_training_without_a_recipe() -> None:
    wrong: list[Callable[[], object]] = [
        lambda: load_settings([f"engine.vllm.extra=hf_{CANARY}"]),
        lambda: load_settings(["train.wandb_api_key=hunter"]),
    ]
    for load in wrong:
        with pytest.raises(RecipeError, match="looks like a secret"):
            load()


@pytest.mark.slow
def test_no_key_of_the_environment_reaches_a_file_or_a_screen(
    tmp_path: Path, recipe_file: Path
) -> None:
    """Each command once, with a key for a server, which gets it, and one for the Hub, likewise."""
    key = f"sk-canary-{CANARY}"
    with openai_server.serve(key=key) as server, hub_server.serve() as hub:
        endpoint = f'{{"base_url": "{server.url}", "model": "m", "api_key_env": "CANARY_KEY"}}'
        judge = f'{{"role": "judge", "endpoint": {endpoint}}}'
        environment = {
            **os.environ,
            "CANARY_KEY": key,
            "OPENAI_API_KEY": key,
            "HF_TOKEN": hub_server.TOKEN,
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "hf"),
        }
        sets = ["-r", str(recipe_file), "--set", "engine.name=fake", "--set", f"agents.j={judge}"]
        sets += ["--set", "eval.judge={kind: llm, agent: j}"]
        # The fake engine asks no server, so one dataset is made without it.
        asks = moaa(tmp_path, server, api_key_env="CANARY_KEY")[3:]
        screens, moaa_recipe = "", asks[-2:]
        for command in (
            asks,
            ["push", "--round", "0", "--to", "asked", *moaa_recipe],
            ["push", "--round", "0", "--repo", "org/asked", *moaa_recipe],
            ["run", "--until", "1"],
            ["eval", "--against", "student-positive-0", "--agents", "student"],
            ["status"],
            ["status", "--json"],
            ["show", "--round", "1"],
            ["report"],
            ["doctor"],
            ["push", "--round", "1", "--to", "tree"],
            ["push", "--round", "1", "--repo", "org/pairs", "--adapters"],
        ):
            done = subprocess.run(
                [sys.executable, "-m", "macpo", *command, *([] if "-r" in command else sets)],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
            )
            if command[0] != "doctor":  # which also says what this machine lacks
                assert done.returncode == 0, done.stderr
            screens += done.stdout + done.stderr
        assert {seen.key for seen in server.seen} == {key}
        pushed = [f.content for repo in hub.repos.values() for t in repo.commits.values()
                  for f in t.values()]  # fmt: skip
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 100 and len(pushed) > 20 and (tmp_path / "tree/README.md").is_file()
    for secret in (CANARY, hub_server.TOKEN):
        assert secret not in screens
        assert not [path for path in files if secret.encode() in path.read_bytes()]
        assert not [content for content in pushed if secret.encode() in content]
