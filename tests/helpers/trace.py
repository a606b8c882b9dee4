"""What runs of a package while a pipeline is called, entry by entry of its network's forward."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple


class Passage(NamedTuple):
    """One entry of the forward: the files on the stack then, and the functions that ran since the entry before."""

    stack: set[str]
    since: set[CodeType]


class Tracer:
    """Counts the files and functions below `package`; modules that are just being imported do not count."""

    def __init__(self, package: Path):
        self.package = package

    def file(self, code: CodeType) -> str | None:
        path = Path(code.co_filename)
        inside = code.co_name != "<module>" and path.is_relative_to(self.package)
        return path.relative_to(self.package).as_posix() if inside else None

    def files(self, codes: set[CodeType]) -> set[str]:
        return {file for code in codes if (file := self.file(code)) is not None}

    def passages(self, call: Callable[[], Any], forward: Callable) -> list[Passage]:
        """Run `call` and note each entry of `forward` (a method of the network's class)."""
        entered, found, since = inspect.unwrap(forward).__code__, [], set()

        def profile(frame: FrameType, event: str, _: Any) -> None:
            nonlocal since
            if event != "call":
                return
            if frame.f_code is entered:
                stack, caller = set(), frame
                while caller is not None:
                    stack.add(caller.f_code)
                    caller = caller.f_back
                found.append(Passage(self.files(stack), {code for code in since if self.file(code)}))
                since = set()
            since.add(frame.f_code)

        sys.setprofile(profile)
        try:
            call()
        finally:
            sys.setprofile(None)
        return found
