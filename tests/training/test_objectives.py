"""Draws and the denoising objective: the table's targets, weights, stratified times, label dropout."""

from __future__ import annotations

import pytest
import torch

from safelight import DDIMScheduler
from safelight.errors import ConfigError, InputError
from safelight.training.draws import Draws
from safelight.training.objectives import DenoisingObjective, compute_snr

from ..helpers.training import Prediction


def test_draws_do_not_depend_on_how_samples_are_batched():
    whole = Draws(5, first=20, count=6)
    parts = [whole[0:4], Draws(5, first=24, count=2)]
    fresh = Draws(5, first=20, count=6)
    for name, arguments in (("stratified", ()), ("normal", ((2, 3),)), ("uniform", ())):
        expected = getattr(fresh, name)(*arguments)
        assert torch.equal(torch.cat([getattr(part, name)(*arguments) for part in parts]), expected)


def test_stratified_times_cover_the_interval_evenly():
    for first in (0, 64, 10**9):
        times = Draws(0, first, 64).stratified().sort().values
        assert times[0] >= 0 and times[-1] < 1
        assert torch.diff(times).max() < 3 / 64


def test_normal_draws_are_standard_normal():
    noise = Draws(0, 0, 500).normal((40,))
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert abs(torch.corrcoef(noise[:2])[0, 1]) < 0.6


class Oracle(torch.nn.Module):
    """Knows the clean picture and answers with what `answer(x, x0, alpha, sigma)` makes of it."""

    def __init__(self, scheduler, clean, answer):
        super().__init__()
        self.scheduler, self.clean, self.answer = scheduler, clean, answer
        self.labels = None

    def forward(self, sample, timestep, class_labels=None):
        self.labels = class_labels
        cumulative = self.scheduler.alphas_cumprod[timestep].view(-1, 1, 1, 1)
        return Prediction(self.answer(sample, self.clean, cumulative.sqrt(), (1 - cumulative).sqrt()))


RIGHT = {
    "epsilon": lambda x, x0, alpha, sigma: (x - alpha * x0) / sigma,
    "sample": lambda x, x0, alpha, sigma: x0,
    "v_prediction": lambda x, x0, alpha, sigma: alpha * (x - alpha * x0) / sigma - sigma * x0,
}


@pytest.mark.parametrize("kind", RIGHT)
def test_right_answer_has_no_loss(kind):
    scheduler, clean = DDIMScheduler(prediction_type=kind), torch.rand(8, 1, 4, 4) * 2 - 1
    objective = DenoisingObjective(scheduler)
    good = objective(Oracle(scheduler, clean, RIGHT[kind]), {"images": clean}, Draws(0, 0, 8)).total
    assert good < 1e-6
    off = Oracle(scheduler, clean, lambda *given: RIGHT[kind](*given) + 0.5)
    assert objective(off, {"images": clean}, Draws(0, 0, 8)).total == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize("kind", RIGHT)
def test_min_snr_weights_the_error_of_x0_whatever_is_predicted(kind):
    scheduler, clean = DDIMScheduler(prediction_type=kind), torch.rand(16, 1, 4, 4) * 2 - 1
    times = (Draws(0, 0, 16).stratified() * 1000).long()
    expected = (0.01 * compute_snr(scheduler, times).clamp(max=5.0)).mean()
    # A network whose x0 is off by 0.1 everywhere.
    network = Oracle(scheduler, clean, lambda x, x0, alpha, sigma: RIGHT[kind](x, x0 + 0.1, alpha, sigma))
    loss = DenoisingObjective(scheduler, min_snr_gamma=5.0)(network, {"images": clean}, Draws(0, 0, 16)).total
    assert loss == pytest.approx(expected.item(), rel=1e-3)


def test_label_dropout_drops_its_share():
    scheduler, clean = DDIMScheduler(), torch.zeros(2000, 1, 1, 1)
    network = Oracle(scheduler, clean, RIGHT["epsilon"])
    batch = {"images": clean, "class_labels": torch.arange(2000) % 10}
    DenoisingObjective(scheduler, label_dropout=0.2, null_label=10)(network, batch, Draws(0, 0, 2000))
    dropped = network.labels == 10
    assert abs(dropped.float().mean() - 0.2) < 0.03
    assert torch.equal(network.labels[~dropped], batch["class_labels"][~dropped])
    DenoisingObjective(scheduler, use_labels=False)(network, batch, Draws(0, 0, 2000))
    assert network.labels is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_snr_gamma": 0.0}, "min_snr_gamma is 0.0"),
        ({"label_dropout": 1.0, "null_label": 2}, "label_dropout is 1.0"),
        ({"label_dropout": 0.1}, "needs null_label"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ConfigError, match=message):
        DenoisingObjective(DDIMScheduler(), **options)


def test_batch_without_pictures():
    with pytest.raises(InputError, match="needs 'images'"):
        DenoisingObjective(DDIMScheduler())(None, {"pictures": torch.zeros(1)}, Draws(0, 0, 1))
