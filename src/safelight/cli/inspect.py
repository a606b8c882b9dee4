"""`safelight inspect MODEL`: what a model is made of, without loading it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from .models import add_loading_arguments, loading_options, locate

if TYPE_CHECKING:
    from ..repository.survey import Part, Survey


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the arguments of `safelight inspect`."""
    parser.description = (
        "Show components, classes, parameters, dtypes and bytes. Weights are neither loaded nor downloaded: of those "
        "on the Hub only the headers are read."
    )
    parser.add_argument("model", help="folder, .safetensors file, repository id or bundled model")
    parser.add_argument("--json", action="store_true", help="print it all as JSON")
    add_loading_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the survey of `args.model`; returns the exit status."""
    from ..repository.survey import survey

    found = survey(locate(args.model), **loading_options(args))
    found.model = args.model
    print(json.dumps(asdict(found), indent=2) if args.json else as_text(found))
    return 0


def as_text(found: Survey) -> str:
    """The survey as a table for people."""
    rows = [("component", "class", "parameters", "stored as", "size"), *(_row(part) for part in found.parts)]
    if len(found.parts) > 1:
        rows.append(("total", "", f"{found.parameters:,}", "", size(found.bytes)))
    widths = [max(len(row[k]) for row in rows) for k in range(5)]
    align = ("<", "<", ">", "<", ">")
    lines = [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)).rstrip()
        for row in rows
    ]
    notes = [f"{part.name}: {part.note}" for part in found.parts if part.note and part.class_name]
    place = f"on this machine: {size(found.cached)}; to download: {size(found.to_download)}"
    title = f"{found.model}: {found.class_name or found.kind}"
    return "\n".join([title, "", *lines, "", *notes, place])


def _row(part: Part) -> tuple[str, str, str, str, str]:
    if not part.tensors:
        small = sum(file.size for file in part.files)
        return part.name, part.class_name or f"({part.note})", "", "", size(small) if part.files else ""
    types = sorted(part.dtypes, key=lambda name: -part.dtypes[name])
    return part.name, part.class_name or "", f"{part.parameters:,}", ", ".join(types), size(part.bytes)


def size(count: float) -> str:
    """Bytes in the unit that people read: 1 kB is 1000 bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
