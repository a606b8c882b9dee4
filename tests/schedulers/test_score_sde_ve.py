"""What is ScoreSdeVe's own: a pure surface that is told σ, corrected steps, corrections, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from safelight import ScoreSdeVeScheduler
from safelight.errors import ConfigError, InputError

from ..helpers.sampling import SHAPE, familiar_run, start

X, Y, Z = (start(1.0, seed) for seed in (0, 1, 2))


def test_a_plan_tells_the_network_sigma_and_the_scheduler_shows_t() -> None:
    scheduler = ScoreSdeVeScheduler()
    scheduler.set_timesteps(7)
    plan = scheduler.plan(7)
    assert torch.equal(plan.timesteps, scheduler.sigmas)
    assert plan.times == tuple(scheduler.sigmas.tolist())
    assert [level for _, level in plan.levels] == list(plan.times)
    assert scheduler.timesteps[0] == 1.0
    assert scheduler.timesteps[-1] == pytest.approx(1e-5)
    assert [scheduler.index_for_timestep(t) for t in scheduler.timesteps] == list(range(7))
    assert len(plan.start_at(3).timesteps) == len(scheduler.at(plan.start_at(3), 0).timesteps) == 4


def test_the_pure_surface_is_the_predictor() -> None:
    scheduler = ScoreSdeVeScheduler()
    scheduler.set_timesteps(5)
    plan, x, state = scheduler.plan(5), X * scheduler.init_noise_sigma, None
    generator = torch.Generator().manual_seed(3)
    for i, sigma in enumerate(plan.times):
        score = -x / (sigma**2 + 0.25)
        expected = scheduler.step_pred(score, scheduler.timesteps[i], x, torch.Generator().manual_seed(i))
        noise = scheduler.draw_noise(plan, i, x, generator.manual_seed(i))
        x, state, original = scheduler.advance(plan, i, score, x, state, noise)
        assert torch.equal(x, expected.prev_sample)
        assert torch.equal(state, expected.prev_sample_mean)
        torch.testing.assert_close(scheduler.implied_output(plan, i, X, original), (original - X) / sigma**2)
    assert familiar_run(scheduler, {"generator": generator}).samples.isfinite().all()


@pytest.mark.parametrize("end", [1e-5, 0.3])
def test_corrected_runs_step_along_their_sigmas_to_zero(end: float) -> None:
    scheduler = ScoreSdeVeScheduler(sigma_max=50.0)
    plan = scheduler.plan(9, sampling_eps=end, corrected=True)
    ends = [*plan.times[1:], 0.0]
    for i, (sigma, following) in enumerate(zip(plan.times, ends, strict=True)):
        noise = scheduler.draw_noise(plan, i, X, torch.Generator().manual_seed(1))
        assert (noise is None) is (i == 8)
        # The exact score of an image that is 0.3 everywhere: the mean is E[x'|x] of the forward process.
        mean = scheduler.advance(plan, i, (0.3 - X) / sigma**2, X, None, noise).state
        torch.testing.assert_close(mean, 0.3 + (X - 0.3) * following**2 / sigma**2, atol=1e-5, rtol=1e-5)
    assert scheduler.plan(9, sampling_eps=end).rows[4] != plan.rows[4]


def test_the_corrected_run_keeps_being_so_with_other_sigmas() -> None:
    scheduler = ScoreSdeVeScheduler()
    scheduler.set_timesteps(6, 0.1, corrected=True)
    scheduler.set_sigmas(6, sigma_min=0.02, sigma_max=30.0)
    assert scheduler.init_noise_sigma == pytest.approx(30.0)
    assert scheduler._active is not None
    assert not scheduler._active.needs_noise[-1]
    assert scheduler.timesteps[-1] == pytest.approx(0.1)
    torch.testing.assert_close(scheduler.discrete_sigmas[[0, -1]], torch.tensor([0.02, 30.0]))
    scheduler.set_sigmas(4, sampling_eps=0.5)  # the reference does not look at sampling_eps here
    assert scheduler.timesteps.tolist() == pytest.approx([1, 5 / 6, 2 / 3, 0.5])


def test_a_correction_is_pure_and_bounded() -> None:
    scheduler = ScoreSdeVeScheduler(snr=0.2)
    once, again = (scheduler.correct(Y, X, Z) for _ in "ab")
    assert torch.equal(once, again)
    step = 2 * (0.2 * Z.flatten(1).norm(dim=1).mean() / Y.flatten(1).norm(dim=1).mean()) ** 2
    torch.testing.assert_close(once, X + step * Y + (2 * step) ** 0.5 * Z)
    assert torch.equal(scheduler.correct(torch.zeros(SHAPE), X, Z), X)
    assert scheduler.correct(Y.half(), X.half(), Z).dtype == torch.float16


def test_refusals() -> None:
    wrong = [
        {"sigma_min": 0.0}, {"sigma_min": 5.0, "sigma_max": 1.0}, {"sigma_max": float("inf")}, {"snr": 0.0},
        {"sampling_eps": -0.1}, {"sampling_eps": 1.5}, {"correct_steps": -1}, {"num_train_timesteps": 2.5},
    ]  # fmt: skip
    for config in wrong:
        with pytest.raises(ConfigError, match=next(iter(config))):
            ScoreSdeVeScheduler(**config)  # type: ignore[arg-type]
    scheduler = ScoreSdeVeScheduler()
    scheduler.set_timesteps(5)
    with pytest.raises(InputError, match="sigma_max"):
        scheduler.set_sigmas(5, sigma_max=0.001)
    with pytest.raises(InputError, match="sampling_eps"):
        scheduler.set_timesteps(5, 2.0)
    with pytest.raises(InputError, match="timetable"):
        scheduler.step_pred(Y, 0.123, X)
    with pytest.raises(InputError, match="shape"):
        scheduler.step_pred(Y[:1], scheduler.timesteps[0], X)
