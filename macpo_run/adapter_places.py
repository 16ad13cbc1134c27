"""Where an adapter lies that a person names: a folder, or a place on the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macpo_data import hub_client
from macpo_data.errors import ModelError
from macpo_data.models.weights import ADAPTER_FILES


@dataclass(frozen=True)
class AdapterPlace:
    """A folder, or else a place on the Hub."""

    name: str  # as a person wrote it
    folder: Path | None = None
    repo: str = ""
    prefix: str = ""  # of its files in the repository: empty, or a folder with a slash behind it
    revision: str | None = None

    @classmethod
    def of(cls, name: str) -> AdapterPlace:
        """The place that a name means: a folder, or org/name[/subfolder][@revision] on the Hub.

        Raises:
            MacpoError: it is neither.
        """
        folder = Path(name).expanduser()
        if folder.is_dir() or name.startswith((".", "/", "~")):
            return cls(name, folder)
        place, _, revision = name.partition("@")
        parts = place.split("/")
        repo = hub_client.check_repo("/".join(parts[:2]))
        prefix = "".join(f"{part}/" for part in parts[2:])
        return cls(name, None, repo, prefix, revision or None)

    def flaw(self, info: Any) -> str | None:
        """What the repository lacks, as far as its page tells."""
        names = {file.rfilename for file in info.siblings or []}
        missing = [self.prefix + n for n in ADAPTER_FILES if self.prefix + n not in names]
        return f"it has no {' and no '.join(missing)}" if names and missing else None

    def fetch(self) -> Path:
        """Its folder, fetched from the Hub where it is not here.

        Raises:
            MacpoError: there is no adapter, or the Hub refuses.
        """
        if self.folder is not None:
            if not all((self.folder / name).is_file() for name in ADAPTER_FILES):
                raise ModelError(
                    f"no adapter in {self.name}: a folder with {' and '.join(ADAPTER_FILES)} is "
                    "needed"
                )
            return self.folder
        with hub_client.one_line("fetch the adapter", self.name):
            from huggingface_hub import snapshot_download

            hub_client.connect()
            where = hub_client.ask(
                snapshot_download,
                self.repo,
                revision=self.revision,
                allow_patterns=[self.prefix + name for name in ADAPTER_FILES],
            )
        folder = Path(where) / self.prefix
        if not (folder / ADAPTER_FILES[1]).is_file():
            raise ModelError(
                f"{self.name} holds no adapter in safetensors; name it as org/name/subfolder"
            )
        return folder
