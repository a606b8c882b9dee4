"""The page on the command line names every flag, and none that does not exist."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

from safelight.cli import main as cli

from ..helpers.tree import ROOT

PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from (flag for flag in action.option_strings if flag.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for own in action.choices.values():
                yield from flags(own)


def test_the_page_names_exactly_the_flags_that_exist():
    existing = {flag for command in cli._COMMANDS for flag in flags(cli._parser(command))}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", PAGE))
    assert named == existing


def test_every_command_has_its_section():
    assert all(f"## safelight {command}" in PAGE for command in cli._COMMANDS)
