"""How good are the samples of a Fashion-MNIST model? Figures beside those of real pictures.

A small classifier is trained on the real training set. It says whether a sample is recognised as what was asked for,
and with what confidence; and its penultimate features give a Fréchet distance to the test set, as FID does with
Inception's.

    python examples/fashion_mnist/evaluate.py MODEL --output results.json
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from safelight import DDIMPipeline
from safelight.images import make_image_grid
from safelight.training.data import FashionMNIST, to_signed

CLASSES = 10


class Classifier(nn.Module):
    """Three convolutions and two linear layers; `features` (B, 128) are what the last one sees."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1, 32), (32, 64), (64, 128)):
            convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 9, 128), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(128, CLASSES))

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images)


def train_classifier(data: FashionMNIST, epochs: int, seed: int = 0) -> Classifier:
    torch.manual_seed(seed)
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    steps = epochs * (len(data) // 128)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    for epoch in range(epochs):
        for indices in torch.randperm(len(data)).split(128)[: len(data) // 128]:
            batch = data.batch(indices)
            loss = F.cross_entropy(model.head(model.features(batch["images"])), batch["class_labels"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
        print(f"classifier: epoch {epoch + 1}/{epochs}, loss {loss.item():.3f}", flush=True)
    return model.eval()


@torch.no_grad()
def look_at(model: Classifier, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(features in float64, class probabilities) of `images` (N, 1, 28, 28) in [−1, 1]."""
    features = torch.cat([model.features(part) for part in images.split(500)])
    return features.double(), model.head(features).softmax(1)


def frechet_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """|μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁Σ₂)^½) of two sets of features (Heusel et al. 2017, arXiv:1706.08500, eq. 6)."""
    first, second = torch.cov(one.T), torch.cov(other.T)
    values, vectors = torch.linalg.eigh(first)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    # Σ₁Σ₂ has the eigenvalues of the symmetric Σ₁^½ Σ₂ Σ₁^½.
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return ((one.mean(0) - other.mean(0)).square().sum() + first.trace() + second.trace() - 2 * cross).item()


def balanced(data: FashionMNIST, per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `per_class` pictures of each class, and the indices of all the others."""
    chosen = torch.cat([(data.labels == label).nonzero()[:per_class, 0] for label in range(CLASSES)])
    rest = torch.ones(len(data), dtype=torch.bool)
    rest[chosen] = False
    return chosen, rest.nonzero()[:, 0]


def sample(arguments: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(pictures, labels asked for, seconds per picture)."""
    pipeline = DDIMPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    labels = torch.arange(arguments.count) % CLASSES
    pictures, began = [], time.perf_counter()
    for start in range(0, arguments.count, 100):
        part = labels[start : start + 100]
        result = pipeline(
            class_labels=part,
            seed=arguments.seed + start,
            num_inference_steps=arguments.steps,
            guidance_scale=arguments.guidance_scale,
            eta=arguments.eta,
            output_type="pt",
        )
        pictures.append(result.images)
        print(f"sampled {start + len(part)}/{arguments.count}", flush=True)
    # Through bytes, as the real pictures are.
    bytes_ = torch.cat(pictures).mul(255).round().clamp(0, 255)
    return to_signed(bytes_), labels, (time.perf_counter() - began) / arguments.count


def nearest_training_picture(images: torch.Tensor, training: torch.Tensor) -> float:
    """Median distance (root mean square over pixels, range 2) of `images` to their nearest training picture."""
    flat = training.flatten(1)
    nearest = torch.cat([torch.cdist(part.flatten(1), flat).min(1).values for part in images.split(250)])
    return (nearest.median() / flat.shape[1] ** 0.5).item()


def save_grid(path: Path, images: torch.Tensor, labels: torch.Tensor, rows: int = 8) -> None:
    """Columns are classes."""
    from PIL import Image

    columns = torch.stack([images[labels == label][:rows] for label in range(CLASSES)], dim=1).flatten(0, 1)
    bytes_ = columns.add(1).mul(127.5).round().byte()[:, 0].numpy()
    make_image_grid([Image.fromarray(array) for array in bytes_], rows=rows, cols=CLASSES).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", help="a pipeline repository")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--eta", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=6, help="of the classifier")
    parser.add_argument("--classifier", type=Path, help="safetensors file to keep the classifier in")
    parser.add_argument("--output", type=Path, help="JSON file for the figures; grids of pictures go beside it")
    arguments = parser.parse_args()

    training, test = FashionMNIST("train"), FashionMNIST("test")
    classifier = Classifier().eval()
    if arguments.classifier is not None and arguments.classifier.exists():
        classifier.load_state_dict(load_file(arguments.classifier))
    else:
        classifier = train_classifier(training, arguments.epochs)
        if arguments.classifier is not None:
            save_file(classifier.state_dict(), arguments.classifier)

    generated, asked, seconds = sample(arguments)
    per_class = arguments.count // CLASSES
    chosen_train, _ = balanced(training, per_class)
    chosen_test, other_test = balanced(test, per_class)
    everything = test.batch(torch.arange(len(test)))["images"]
    reference, probabilities = look_at(classifier, everything)
    accuracy = (probabilities.argmax(1) == test.labels).float().mean().item()

    noise = torch.rand(generated.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sets = {
        "samples": (generated, asked, reference),
        "training pictures": (to_signed(training.pixels[chosen_train]), training.labels[chosen_train], reference),
        "test pictures, against the other test pictures": (
            to_signed(test.pixels[chosen_test]),
            test.labels[chosen_test],
            reference[other_test],
        ),
        "noise": (noise, asked, reference),
    }
    all_training = to_signed(training.pixels)
    figures: dict[str, dict[str, float]] = {}
    for name, (images, labels, against) in sets.items():
        features, probabilities = look_at(classifier, images)
        figures[name] = {
            "recognised": (probabilities.argmax(1) == labels).float().mean().item(),
            "confidence": probabilities.max(1).values.mean().item(),
            "frechet_distance": frechet_distance(features, against),
        }
        if name != "training pictures":
            figures[name]["nearest_training_picture"] = nearest_training_picture(images, all_training)
    print(f"classifier's accuracy on the test set: {accuracy:.4f}; {seconds * 1000:.0f} ms per sample")
    for name, values in figures.items():
        print(f"{name:50s}", "  ".join(f"{key} {value:.4f}" for key, value in values.items()))
    per_class_recall = [
        (look_at(classifier, generated[asked == k])[1].argmax(1) == k).float().mean() for k in range(CLASSES)
    ]
    for name, share in zip(training.class_names, per_class_recall, strict=True):
        print(f"  {name:12s} recognised {share:.3f}")
    if arguments.output is not None:
        options = {key: str(value) for key, value in vars(arguments).items()}
        content = {"options": options, "classifier_accuracy": accuracy, "figures": figures}
        arguments.output.write_text(json.dumps(content, indent=2) + "\n")
        save_grid(arguments.output.with_suffix(".png"), generated, asked)
        save_grid(arguments.output.with_name(arguments.output.stem + "-real.png"), *sets["training pictures"][:2])


if __name__ == "__main__":
    main()
