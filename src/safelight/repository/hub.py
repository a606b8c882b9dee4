"""Where files come from: a local folder, or a repository on the Hub through huggingface_hub and its usual cache."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..bundled import bundled_models
from ..errors import RepositoryError

logger = logging.getLogger(__name__)

# Repositories that were removed from the Hub, and where their files live on.
RENAMED = {
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "runwayml/stable-diffusion-inpainting": "stable-diffusion-v1-5/stable-diffusion-inpainting",
}

# Options of other libraries that ask for what happens here anyway, or for what no longer exists.
_WITHOUT_EFFECT = ("resume_download", "mirror", "local_dir_use_symlinks", "user_agent")


@dataclass(frozen=True)
class Source:
    """A folder of files, local or on the Hub.

    A file that is in the cache is used without asking the Hub; `force_download` asks. So a cached repository needs no
    network, and one that moved on keeps its cached state until then. A missing file is looked for once and its absence
    remembered in the cache.
    """

    location: str
    folder: Path | None = None
    subfolder: str = ""
    revision: str = "main"
    cache_dir: str | os.PathLike | None = None
    local_files_only: bool = False
    token: str | bool | None = None
    force_download: bool = False

    @staticmethod
    def option_names() -> tuple[str, ...]:
        """The options that `from_options` understands."""
        return ("subfolder", "revision", "cache_dir", "local_files_only", "token", "force_download")

    @classmethod
    def from_options(cls, location: str | os.PathLike, options: Mapping[str, Any]) -> tuple[Source, dict[str, Any]]:
        """The source that `location` (a path, a bundled model, a Hub id) and these options mean; and the others."""
        if not isinstance(location, str | os.PathLike) or not str(location):
            raise RepositoryError(f"{location!r} is neither a path nor a repository's id")
        unused = {name: value for name, value in options.items() if name not in _WITHOUT_EFFECT}
        own = {name: unused.pop(name) for name in cls.option_names() if name in unused}
        own = {name: value for name, value in own.items() if value is not None}
        path = Path(location).expanduser()
        if path.is_dir():
            return cls(str(location), folder=path, **own), unused
        name = str(location)
        if name in bundled_models():
            return cls(name, folder=bundled_models()[name], **own), unused
        if path.is_file():
            raise RepositoryError(f"{name!r} is a file; a folder or a repository's id is needed")
        if name.startswith((".", "/", "~")) or name.count("/") > 1 or (os.sep != "/" and os.sep in name):
            raise RepositoryError(f"there is no folder {name!r}")
        if name in RENAMED:
            logger.warning("%s was removed from the Hub; its copy %s is used", name, RENAMED[name])
            name = RENAMED[name]
        return cls(name, **own), unused

    @property
    def is_local(self) -> bool:
        return self.folder is not None

    def sub(self, name: str) -> Source:
        """The same source, one folder further down."""
        return replace(self, subfolder=f"{self.subfolder}/{name}".strip("/"))

    def __str__(self) -> str:
        return f"{self.location}/{self.subfolder}" if self.subfolder else self.location

    def pinned(self, path: Path) -> Source:
        """This source at the commit that `path`, one of its files, came from: so that no load mixes two commits."""
        parts = path.parts
        if self.is_local or "snapshots" not in parts:
            return self
        return replace(self, revision=parts[len(parts) - 1 - parts[::-1].index("snapshots") + 1])

    def file(self, name: str) -> Path:
        """The local path of a file; raises `RepositoryError` where there is none."""
        path = self.find(name)
        if path is None:
            hint = ""
            if name == "config.json" and self.find("model_index.json") is not None:
                hint = "; it holds a whole pipeline: name one part of it with subfolder=…"
            raise RepositoryError(f"{str(self)!r} has no file {name!r}{hint}")
        return path

    def find(self, name: str) -> Path | None:
        """The local path of a file, downloaded if need be, or None where the repository does not have it."""
        relative = f"{self.subfolder}/{name}".lstrip("/")
        if self.folder is not None:
            path = self.folder / relative
            return path if path.is_file() else None
        return self._find_on_hub(relative)

    def _find_on_hub(self, name: str) -> Path | None:
        import huggingface_hub
        from huggingface_hub import errors

        cache = None if self.cache_dir is None else Path(self.cache_dir)
        try:
            if not self.force_download:
                cached = huggingface_hub.try_to_load_from_cache(
                    self.location, name, cache_dir=cache, revision=self.revision
                )
                if isinstance(cached, str):
                    return Path(cached)
                if cached is not None:
                    return None  # the cache remembers that there is no such file
            return Path(
                huggingface_hub.hf_hub_download(
                    self.location,
                    name,
                    revision=self.revision,
                    cache_dir=cache,
                    local_files_only=self.local_files_only,
                    token=self.token,
                    force_download=self.force_download,
                )
            )
        except errors.LocalEntryNotFoundError as error:
            if self._has_cached_files():
                return None
            raise RepositoryError(
                f"{self.location!r} is neither a local folder nor in the cache, and the Hub was not asked or did not "
                f"answer ({_reason(error)}); check the name, the network, HF_HUB_OFFLINE and local_files_only"
            ) from error
        except errors.EntryNotFoundError:
            return None
        except errors.GatedRepoError as error:
            raise RepositoryError(
                f"{self.location!r} is gated: accept its terms on its page, then `hf auth login` or pass token="
            ) from error
        except errors.RevisionNotFoundError as error:
            raise RepositoryError(f"{self.location!r} has no revision {self.revision!r}") from error
        except errors.RepositoryNotFoundError as error:
            raise RepositoryError(
                f"there is no local folder {self.location!r} and no such repository on the Hub; if it is private, "
                "`hf auth login` or pass token="
            ) from error
        except errors.HFValidationError as error:
            raise RepositoryError(f"{self.location!r} is neither a local folder nor a valid repository id") from error
        except (errors.HfHubHTTPError, OSError) as error:
            raise RepositoryError(f"{name!r} of {self.location!r} could not be fetched: {_reason(error)}") from error

    def _has_cached_files(self) -> bool:
        """Whether the cache holds any of this revision, so that a file it lacks can be taken as absent when offline."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        root = Path(self.cache_dir or constants.HF_HUB_CACHE)
        root = root / repo_folder_name(repo_id=self.location, repo_type="model")
        reference = root / "refs" / self.revision
        commit = reference.read_text().strip() if reference.is_file() else self.revision
        return (root / "snapshots" / commit).is_dir()

    def on_hub(self, name: str) -> bool:
        """Whether a file is there, without downloading it (for error messages)."""
        if self.folder is not None:
            return self.find(name) is not None
        import huggingface_hub

        relative = f"{self.subfolder}/{name}".lstrip("/")
        try:
            return huggingface_hub.file_exists(self.location, relative, revision=self.revision, token=self.token)
        except Exception:  # offline, or no such repository: nothing more can be said
            return False


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
