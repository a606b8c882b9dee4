"""No file is longer than can be read in one sitting."""

from __future__ import annotations

from ..helpers.tree import python_files, shown

LONGEST = 600


def test_no_file_is_too_long() -> None:
    lengths = {shown(path): len(path.read_text(encoding="utf-8").splitlines()) for path in python_files()}
    assert "src/safelight/__init__.py" in lengths
    assert not {path: length for path, length in lengths.items() if length > LONGEST}
