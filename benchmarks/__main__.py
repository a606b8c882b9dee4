"""All benchmarks, one after the other: `python -m benchmarks [--json FOLDER]` (what `make bench` runs)."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

BENCHMARKS = ("structure", "schedulers", "loading")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write each benchmark's figures to this folder")
    options = parser.parse_args()
    for name in BENCHMARKS:
        print(f"\n== {name} ==", flush=True)
        command = [sys.executable, str(Path(__file__).with_name(f"{name}.py"))]
        if options.json:
            options.json.mkdir(parents=True, exist_ok=True)
            command += ["--json", str(options.json / f"{name}.json")]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
