"""A thing is written once: no run of six or more code lines stands twice."""

from __future__ import annotations

from pathlib import Path

from ..helpers.duplicates import find_duplicates
from ..helpers.tree import python_files, shown

BODY = "".join(f"    x{i} = step({i})\n" for i in range(6))


def test_nothing_is_written_twice() -> None:
    found = [
        f"{shown(a.path)}:{a.number} and {shown(b.path)}:{b.number}, {length} lines from: {a.text}"
        for a, b, length in find_duplicates(python_files())
    ]
    assert not found, "\n".join(found)


def _in_files(folder: Path, *sources: str) -> list[tuple[int, int, int]]:
    paths = [folder / f"{i}.py" for i in range(len(sources))]
    for path, source in zip(paths, sources, strict=True):
        path.write_text(source)
    return [(a.number, b.number, length) for a, b, length in find_duplicates(paths)]


def test_the_detector_sees_through_layout(tmp_path: Path) -> None:
    commented = BODY.replace("\n", "  # why\n\n").replace("    ", "            ")
    assert _in_files(tmp_path, f"def f():\n{BODY}", f"def g():\n  if x:\n{commented}") == [(2, 3, 6)]


def test_the_detector_finds_a_copy_within_a_file(tmp_path: Path) -> None:
    assert _in_files(tmp_path, f"def f():\n{BODY}\n\ndef g():\n{BODY}") == [(2, 11, 6)]


def test_the_detector_leaves_the_rest_alone(tmp_path: Path) -> None:
    five = "".join(BODY.splitlines(keepends=True)[:5])
    imports = "from a import (\n    b,\n    c,\n    d,\n    e,\n    f,\n    g,\n)\n"
    schema = "class A:\n    @register_to_config\n    def __init__(\n        self,\n" + "".join(
        f"        x{i}=0,\n" for i in range(7)
    )
    again = "x = 1\n" * 8
    assert not _in_files(tmp_path, f"def f():\n{five}", f"def g():\n{five}    return 1\n")
    assert not _in_files(tmp_path, imports, imports)
    assert not _in_files(tmp_path, f"{schema}    ):\n        pass\n", f"{schema}    ):\n        return\n")
    assert not _in_files(tmp_path, again)
