"""Import and load, beside diffusers: seconds from process start, and peak resident memory, each in a fresh process.

    python benchmarks/loading.py [--json FILE] [--folder FOLDER]

The repository has Stable Diffusion 1.5's layout at full size and random float16 weights (time and memory do not depend
on the values); it is made in a temporary folder unless one is given. The libraries alternate A B B A after a warm-up
that brings the files into the page cache; medians and their ratio are printed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PEAK = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
LOAD = """
import torch, logging
from {library} import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained({folder!r}, torch_dtype=torch.{dtype}, safety_checker=None)
"""
IMPORT = "from {library} import StableDiffusionPipeline\n"


def write_repository(folder: Path) -> None:
    """Stable Diffusion 1.5's components at full size, random float16."""
    import diffusers
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.helpers.clip_vocab import write_clip_tokenizer
    from tests.helpers.repositories import STABLE_DIFFUSION_SCHEDULER

    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    makers = {
        "unet": lambda: diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        "vae": lambda: diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=512,
        ),
        "text_encoder": lambda: CLIPTextModel(CLIPTextConfig(vocab_size=49408, projection_dim=768, **text)),
    }
    for name, make in makers.items():
        with torch.device("meta"):
            model = make()
        model = model.to(torch.float16).to_empty(device="cpu")
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point():
                    tensor.copy_(0.02 * torch.randn(tensor.shape))
        model.save_pretrained(folder / name)
    diffusers.PNDMScheduler(**STABLE_DIFFUSION_SCHEDULER).save_pretrained(folder / "scheduler")
    write_clip_tokenizer(folder / "tokenizer")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def run(code: str) -> tuple[float, float]:
    """Seconds and peak resident GB of a fresh process that runs `code`."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code + PEAK], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr)
    return seconds, int(done.stdout.split()[-1]) * 1024 / 1e9


def compare(first: str, second: str, rounds: int) -> dict[str, Any]:
    """Both commands in turn, A B B A: medians and the ratio of seconds."""
    figures: dict[str, list[tuple[float, float]]] = {first: [], second: []}
    run(first), run(second)
    for _ in range(rounds):
        for code in (first, second, second, first):
            figures[code].append(run(code))
    (a, a_peak), (b, b_peak) = (
        (statistics.median(s for s, _ in rows), statistics.median(m for _, m in rows)) for rows in figures.values()
    )
    return {
        "seconds": round(a, 2),
        "other_seconds": round(b, 2),
        "ratio": round(a / b, 3),
        "peak_gb": round(a_peak, 2),
        "other_peak_gb": round(b_peak, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--folder", type=Path, help="a full-size repository; made here if it is empty")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "model_index.json").exists():
            write_repository(folder)
        results = {
            "import, against import torch": compare(IMPORT.format(library="safelight"), "import torch\n", 5),
            "import, against diffusers": compare(*(IMPORT.format(library=x) for x in ("safelight", "diffusers")), 2),
        }
        for dtype in ("float32", "bfloat16", "float16"):
            both = (LOAD.format(library=x, folder=str(folder), dtype=dtype) for x in ("safelight", "diffusers"))
            results[f"load float16 files as {dtype}"] = compare(*both, options.rounds)
    print(f"{'process start to …':<34}{'safelight s':>12}{'other s':>10}{'ratio':>8}{'peak GB':>9}{'other GB':>9}")
    for name, row in results.items():
        print(
            f"{name:<34}{row['seconds']:>12}{row['other_seconds']:>10}{row['ratio']:>8}"
            f"{row['peak_gb']:>9}{row['other_peak_gb']:>9}"
        )
    if options.json:
        import diffusers
        import torch

        versions = {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__}
        options.json.write_text(json.dumps({"versions": versions, "loading": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
