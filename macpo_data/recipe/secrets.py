"""Keys and passwords in a recipe, found by name and by value: what stands there is published.

A recipe travels with its results into manifests, cards, pages and pushed trees. So a secret is
refused before anything runs, and no message repeats it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

Keys = tuple[str, ...]  # that lead to a value
HIDDEN = "***"

# How the keys of known services begin, wherever they stand in a text.
_KNOWN = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{8,}|hf_[a-z]{20,}"  # hf_models is a name
    r"|api_org_[A-Za-z]{20,}|gh[a-z]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|gl[a-z]{2,5}-[\w-]{16,}"
    r"|sk-(?:[A-Za-z]+-)*(?:[A-Za-z]+\d+-)?(?=[A-Za-z_]*\d)\w{12,}|sk-[\w-]{30,}"
    r"|xox[a-z]-[\w-]{8,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|AIza[\w-]{20,}|ya29\.[\w-]{16,}"
    r"|gsk_\w{16,}|nvapi-[\w-]{16,}|xai-\w{20,}|pplx-\w{20,}|r8_\w{20,}|npm_\w{20,}"
    r"|(?:[rs]k|pk)_(?:live|test)_\w{16,}|whsec_\w{16,}|(?:AC|SK)[0-9a-f]{32}|SG\.[\w-]{16,}"
    r"|GOCSPX-[\w-]{16,}|1//0[\w-]{20,}|dckr_pat_[\w-]{16,}|NRAK-\w{16,}|figd_[\w-]{16,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"  # a JSON web token
    r"|\d{8,10}:AA[\w-]{30,}"  # a Telegram bot
    r"|[MNO][\w-]{23,27}\.[\w-]{6}\.[\w-]{27,}"  # a Discord bot
    r")"
    r"|hooks\.slack\.com/(?:services|workflows|triggers)/\w+/|api\.telegram\.org/bot\d"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|PuTTY-User-Key-File|\bMII[A-Za-z0-9+/]{60,}|\$2[aby]\$\d\d\$"
    r"|(?i:\bbearer\s+)(?=\S*\d)[\w.~+/=-]{8,}"
    r"|://[^/\s@]+@"  # user:password@, or token@
    r"|://[^/\s@:]*:(?!\d+/)[^\s@]{1,200}@[\w.-]"  # a password with a slash
    r"|jdbc:oracle:\w+:\w+/[^\s@]{1,200}@"
    # curl's user:password, and no numbers of a user and a group
    r"|(?<![\w$.?&/-])-(?:u|-(?:proxy-)?user)[= ]*['\"]?(?!\d+:\d+\b)[^\s:'\"$<{%-][^\s:'\"]{0,200}"
    r":(?![/$<{%])[^\s:]"
)
_QUERY = re.compile(r"[?&;]([\w.-]+)=[^&;#\s]")  # the names in a URL's query
# What a text gives by name: NAME=value, --name value, a line of .netrc or of a header. A value
# that names a variable is no secret.
_GIVEN = re.compile(
    r"(?<![\w$.?&-])--?([A-Za-z][\w-]+)[= ]+(?![-$<{%])\S"
    r"|(?<![\w$.-])([A-Za-z][\w.-]*)\s?=\s?['\"]?(?![$<{%\s=])\S"
    r"|\b(password|passwd) +(?=\S*\d)\S{6,}"
)
_HEADER = re.compile(r"([A-Za-z][\w-]*):\s*(?:[A-Za-z]+\s+)?(?![$<{%])\S{6,}")
_AWS = re.compile(r"[A-Za-z0-9/+]{40}")  # its secret keys have slashes, as paths have
_KEY_ALONE = re.compile(r"sk-[\w-]{6,}|(?i:bearer|basic)\s+\S{6,}")  # as the whole of a value

# Words of a name, split where it is written apart or a capital begins.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_ANYWHERE = {
    "apikey", "authorization", "bearer", "cookie", "cookies", "credential", "credentials", "jwt",
    "oauth", "passphrase", "passwd", "password", "passwords", "secret", "secrets",
}  # fmt: skip
_LAST = {
    "auth", "authentication", "header", "headers", "key", "keys", "pass", "pat", "pwd", "session",
    "sessionid", "sig", "signature", "token",
}  # fmt: skip
_PAIRS = {
    ("access", "key"), ("access", "token"), ("api", "key"), ("api", "keys"), ("auth", "token"),
    ("private", "key"), ("session", "id"), ("session", "token"), ("subscription", "key"),
}  # fmt: skip
# What a token or key is where it opens nothing: of a text, a cache, a table.
_HARMLESS = {
    "audio", "begin", "bos", "cache", "cls", "end", "eos", "eot", "foreign", "group", "image",
    "mask", "pad", "primary", "public", "sep", "sort", "special", "start", "stop", "think",
    "thinking", "tool", "unk", "video",
}  # fmt: skip
_ANY_NAME = {"agents", "properties"}  # below these, names are a person's choice, or a schema's
# Where a commit, or another hash, stands: as many digits as it may have.
_HASHES = {
    "revision": 40, "commit": 40, "sha": 128, "digest": 128, "hash": 128, "checksum": 128,
}  # fmt: skip

_RUN = re.compile(r"[A-Za-z0-9_+=-]{20,}")
_HEX = re.compile(r"[0-9a-fA-F]{32,}")
_SHA = re.compile(r"\bsha\d+:[0-9a-fA-F]+")


def problems(values: Any) -> list[str]:
    """A line for each place of a recipe where a secret stands, with its dotted path.

    Args:
        values: the recipe as it was written, before anything is made of it.
    """
    return [_line(path) for path in dict.fromkeys(_places(values, (), False))]


def is_secret(text: str) -> bool:
    """Whether a text is, or holds, something that opens a door."""
    if _KNOWN.search(text) or _KEY_ALONE.fullmatch(text.strip()):
        return True
    if any(is_secret_name(name) for names in _GIVEN.findall(text) for name in names if name):
        return True
    header = _HEADER.fullmatch(text.strip())
    if header and is_secret_name(header[1]):
        return True
    is_url = "://" in text
    if is_url and any(map(is_secret_name, _QUERY.findall(text))):
        return True
    if _AWS.fullmatch(text) and _mixed(re.sub("[/+]", "", text)) >= 0.45:
        return True
    is_path = not is_url and re.search(r"[/\\]|^[~.]", text) and not re.search(r"[+=]", text)
    return not is_path and any(_is_random(run) for run in _RUN.findall(_SHA.sub("", text)))


def line_of_key(text: str) -> int | None:
    """The line, from 1, where a text holds a key of a known service; None where it holds none.

    Nothing else is looked for: a template of a person's own holds much that looks drawn.
    """
    key = _KNOWN.search(text)
    return key and text.count("\n", 0, key.start()) + 1


def shown(text: str) -> str:
    """A text for a message: itself, unless it holds a secret."""
    return HIDDEN if is_secret(text) else text


def is_secret_name(name: str) -> bool:
    """Whether a key is called like something that opens a door, such as `hf_token`.

    >>> is_secret_name("subscription-key"), is_secret_name("max_tokens")
    (True, False)
    """
    words = [word.lower() for word in _WORD.findall(name)]
    if not words or words[-1] == "env":  # names the variable that holds it
        return False
    if _ANYWHERE & {*words} or _PAIRS & {*pairwise(words)}:
        return True
    return words[-1] in _LAST and not _HARMLESS & {*words[:-1]}


def _places(value: Any, path: Keys, named: bool) -> Iterator[Keys]:
    """The path of each secret; `named` where a key above is called like one."""
    if isinstance(value, dict):
        for key, inner in value.items():
            text = str(key)
            if is_secret(text):
                yield (*path, HIDDEN)
            is_choice = bool(path) and path[-1] in _ANY_NAME
            by_name = named or (not is_choice and is_secret_name(text))
            yield from _places(inner, (*path, shown(text)), by_name)
    elif isinstance(value, list | tuple | set):
        for inner in value:
            yield from _places(inner, path, named)
    else:
        stands = named and value not in (None, "") and not isinstance(value, bool)
        if stands or isinstance(value, bytes) or _is_secret_at(value, path):
            yield path


def _is_secret_at(value: Any, path: Keys) -> bool:
    """Whether a text is a secret, and no commit or hash where one belongs."""
    words = {word.lower() for key in path[-1:] for word in _WORD.findall(key)}
    digits = max((_HASHES.get(word, 0) for word in words), default=0)
    is_hash = _HEX.fullmatch(str(value)) and len(str(value)) <= digits
    return isinstance(value, str) and not is_hash and is_secret(value)


def _is_random(run: str) -> bool:
    """Whether characters follow each other as no name's do: drawn, not written.

    The share of neighbours that are of another kind (small, capital, digit) is about 0.6 where they
    are drawn, and 0.4 without capitals; words and versions have long stretches of one kind.
    """
    pieces = re.findall(r"[A-Za-z0-9]+", run)
    longest, whole = max(pieces, key=len, default=""), "".join(pieces)
    if any(_HEX.fullmatch(each) and _mixed(each.lower()) for each in (longest, whole)):
        return True  # the second is a UUID, or another number in groups
    drawn = 0.22 if longest in (longest.lower(), longest.upper()) else 0.4
    by_itself = len(longest) >= 20 and _mixed(longest) >= drawn
    return by_itself or (len(whole) >= 32 and len(longest) >= 12 and _mixed(whole) >= 0.4)


def _mixed(text: str) -> float:
    """The share of neighbours that are of another kind; 0 without letters or digits."""
    kinds = ["digit" if c.isdigit() else "small" if c.islower() else "capital" for c in text]
    if "digit" not in kinds or len({*kinds}) < 2:
        return 0.0
    return sum(a != b for a, b in pairwise(kinds)) / (len(text) - 1)


def _line(path: Keys) -> str:
    where = ".".join(path)
    if path[-1] == "api_key_env":
        return f"{where}: name an environment variable, not the key itself"
    at = path.index("endpoint") if "endpoint" in path else None
    holder = f"{'.'.join(path[: at + 1])}.api_key_env" if at is not None else None
    instead = (
        f"name the environment variable that holds it in {holder}"
        if holder
        else "keep it in an environment variable: HF_TOKEN for the Hub, one that api_key_env names "
        "for an endpoint"
    )
    return f"{where}: looks like a secret, and what stands here is published; {instead}"
