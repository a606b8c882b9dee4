"""How the error of each deterministic solver falls with the number of network evaluations, on Gaussian data.

    python -m benchmarks.convergence [--plot docs/images/convergence.png] [--json FILE]

The probability flow of Gaussian data has a closed solution. The slopes are the orders of the solvers; the tests assert
them (tests/schedulers/test_truth.py). The plot needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tests.helpers.gaussian import measured_order
from tests.schedulers.test_truth import ORDERED, label

import safelight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="draw the errors into this file")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    results = {}
    print(f"{'solver':<64}{'order':>6}{'slope':>7}  error by steps")
    for case in ORDERED:
        scheduler = getattr(safelight, case.name)(**case.config)
        slope, errors = measured_order(scheduler, case.counts, case.down_to, case.begin, **case.options)
        evaluations = [len(scheduler.plan(count, **case.options)) for count in case.counts]
        results[label(case)] = {"order": case.order, "slope": slope, "evaluations": evaluations, "errors": errors}
        by_steps = "  ".join(f"{count}: {error:.1e}" for count, error in zip(case.counts, errors, strict=True))
        print(f"{label(case):<64}{case.order:>6}{slope:>7.2f}  {by_steps}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.plot:
        _draw(results, options.plot)


def _draw(results: dict, path: Path) -> None:
    import matplotlib.pyplot as plt

    best: dict[str, tuple[str, dict]] = {}
    for name, row in results.items():
        family = name.split("-")[0]
        if family not in best or row["errors"][-1] < best[family][1]["errors"][-1]:
            best[family] = (name, row)
    figure, axes = plt.subplots(figsize=(11, 6), layout="constrained")
    colours = plt.get_cmap("tab20").colors
    for k, (name, row) in enumerate(sorted(best.values(), key=lambda one: one[1]["errors"][-1], reverse=True)):
        text = f"{name} ({row['slope']:.1f})"
        axes.loglog(row["evaluations"], row["errors"], marker="o", ms=3, color=colours[k % 20], label=text)
    axes.set(xlabel="evaluations of the network", ylabel="error, in standard deviations of the data at the end")
    axes.grid(which="both", alpha=0.2)
    figure.legend(fontsize=8, title="best order of each (slope)", loc="outside right upper")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
