"""The familiar surface of inversion, unCLIP and RePaint against diffusers, and what theirs get wrong."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import safelight
from safelight.errors import ConfigError, InputError

from ...helpers.compare import relative_difference
from ...helpers.sampling import SHAPE, familiar_run, network, start

INVERSE, UNCLIP, REPAINT = "DDIMInverseScheduler", "UnCLIPScheduler", "RePaintScheduler"
NAMES = [INVERSE, UNCLIP, REPAINT]
TOLERANCE = 1e-5


def _both(name: str, *steps: Any, **config: Any) -> tuple[Any, Any]:
    pair = tuple(getattr(library, name)(**config) for library in (safelight, diffusers))
    for scheduler in pair if steps else ():
        scheduler.set_timesteps(*steps)
    return pair


def _noise(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def _step(scheduler: Any, t: Any, *arguments: Any, dtype: torch.dtype = torch.float32, **keywords: Any) -> Any:
    """A step of the same numbers for both libraries."""
    if isinstance(scheduler, (safelight.RePaintScheduler, diffusers.RePaintScheduler)):
        arguments = (_noise(7).to(dtype), (_noise(8) > 0).to(dtype), *arguments)
    if "generator" in inspect.signature(scheduler.step).parameters:
        keywords.setdefault("generator", torch.Generator().manual_seed(1))
    return scheduler.step(_noise(2).to(dtype), t, _noise(1).to(dtype), *arguments, **keywords)


@pytest.mark.parametrize("name", NAMES)
def test_attributes(name: str) -> None:
    ours, theirs = _both(name)
    assert isinstance(ours.order, int)  # diffusers' unCLIP has none, nor a length
    for steps in ((), (12,)):
        if steps:
            ours.set_timesteps(*steps)
            theirs.set_timesteps(*steps)
        for table in ("betas", "alphas", "alphas_cumprod", "timesteps"):
            assert torch.equal(getattr(ours, table), getattr(theirs, table)), table
        assert ours.timesteps.dtype == theirs.timesteps.dtype
        plain = {key: value for key, value in vars(theirs).items() if key[0] != "_" and not torch.is_tensor(value)}
        for attribute, value in plain.items():
            assert getattr(ours, attribute) == value, attribute
        for attribute in ("one", "final_alpha_cumprod", "initial_alpha_cumprod"):
            assert getattr(ours, attribute, None) == getattr(theirs, attribute, None)


@pytest.mark.parametrize("name", NAMES)
def test_signatures_and_members(name: str) -> None:
    ours, theirs = getattr(safelight, name), getattr(diffusers, name)
    for method in ("step", "set_timesteps"):
        taken = [*inspect.signature(getattr(theirs, method)).parameters]
        assert [*inspect.signature(getattr(ours, method)).parameters][: len(taken)] == taken
    own = {key for key in vars(theirs) if not key.startswith("_")} - {"ignore_for_config"}
    assert own <= {*dir(ours)}
    assert not issubclass(ours, (safelight.DDIMScheduler, safelight.DDPMScheduler))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_steps_keep_their_dtype(name: str, dtype: torch.dtype) -> None:
    results = []
    for scheduler in _both(name, 10):
        output = _step(scheduler, scheduler.timesteps[3], dtype=dtype)
        results.append(torch.stack([output.prev_sample, output.pred_original_sample]).float())
        assert output.prev_sample.dtype == output.pred_original_sample.dtype == dtype
    assert relative_difference(*results) <= (1e-6 if dtype == torch.float32 else 16 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", NAMES)
def test_steps_at_any_time_and_in_any_order(name: str) -> None:
    ours, theirs = _both(name, 50)
    for t in (3, 999, 40, torch.tensor(517), 0):
        results = [_step(scheduler, t, return_dict=False) for scheduler in (ours, theirs)]
        assert isinstance(results[0], tuple)
        for one, other in zip(*results, strict=True):
            assert relative_difference(one, other) <= 2e-6
    with pytest.raises(InputError, match="1000"):
        _step(ours, 1000)


@pytest.mark.parametrize("name", [UNCLIP, REPAINT])
def test_a_generator_for_each_image_which_ends_where_theirs_does(name: str) -> None:
    runs, after = [], []
    for scheduler in _both(name, 8):
        generators = [torch.Generator().manual_seed(seed) for seed in (11, 12)]
        runs.append(torch.stack([_step(scheduler, t, generator=generators)[0] for t in scheduler.timesteps]))
        after.append(torch.stack([torch.randn(3, generator=generator) for generator in generators]))
    assert relative_difference(*runs) <= TOLERANCE
    assert torch.equal(*after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_add_noise(name: str, dtype: torch.dtype) -> None:
    clean, noise, times = _noise(4).to(dtype), _noise(5).to(dtype), torch.tensor([5, 950])
    ours, theirs = _both(name)
    if name == UNCLIP:
        assert torch.equal(*(scheduler.add_noise(clean, noise, times) for scheduler in (ours, theirs)))
        return
    same = safelight.DDPMScheduler().add_noise(clean, noise, times)  # which theirs leave to another class
    assert torch.equal(ours.add_noise(clean, noise, times), same)


@pytest.mark.parametrize("name", NAMES)
def test_configs_of_other_classes_change_only_what_is_ours(name: str, tmp_path: Path) -> None:
    """An entry that the class has no argument for is carried along, and means nothing to it."""
    given = {"thresholding": True, "dynamic_thresholding_ratio": 0.5, "sample_max_value": 2.0, "clip_sample": False}
    given |= {"variance_type": "learned_range", "rescale_betas_zero_snr": name == INVERSE}
    given |= {"beta_schedule": "squaredcos_cap_v2"}
    results, texts = [], []
    for library in (safelight, diffusers):
        scheduler = getattr(library, name).from_config(library.DDPMScheduler(**given).config)
        scheduler.register_to_config(num_train_timesteps=1000)
        scheduler.set_timesteps(10)
        output = torch.cat([_noise(2), _noise(3)], dim=1) if name == UNCLIP else _noise(2)
        known = [torch.zeros(SHAPE)] * 2 if name == REPAINT else []
        results.append(scheduler.step(output * 3, scheduler.timesteps[4], _noise(1) * 3, *known, **_generator(name)))
        scheduler.save_pretrained(tmp_path / library.__name__)
        texts.append((tmp_path / library.__name__ / "scheduler_config.json").read_text())
        assert [cls.__name__ for cls in scheduler.compatibles] == [name]
    for field in ("prev_sample", "pred_original_sample"):
        assert relative_difference(results[0][field], results[1][field]) <= 1e-6
    assert texts[0] == texts[1]
    again = getattr(safelight, name).from_pretrained(tmp_path / "diffusers")
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "scheduler_config.json").read_text() == texts[0]


def _generator(name: str) -> dict[str, Any]:
    return {} if name == INVERSE else {"generator": torch.Generator().manual_seed(1)}


# inversion


def test_inversion_is_ddim_backwards() -> None:
    """Where ε does not depend on x, each undoes the other."""
    config = {"clip_sample": False, "beta_schedule": "scaled_linear"}
    ddim, inverse = safelight.DDIMScheduler(**config), safelight.DDIMInverseScheduler(**config)
    for steps, corrected in ((10, False), (7, True)):
        down, up = ddim.plan(steps, corrected=corrected), inverse.plan(steps, corrected=corrected)
        assert up.times == down.times[::-1]
        x = picture = start(0.5, 3).double()
        for i in range(steps):
            x = inverse.advance(up, i, _noise(i), x).sample
        assert relative_difference(x, picture) > 0.5
        for i in range(steps):
            x = ddim.advance(down, i, _noise(steps - 1 - i), x).sample
        assert relative_difference(x, picture) <= 1e-6


def test_trailing_inversion_starts_where_the_step_before_ended_when_corrected() -> None:
    ours, theirs = _both(INVERSE, 7, timestep_spacing="trailing")
    assert torch.equal(ours.timesteps, theirs.timesteps)
    plan = ours.plan(7, corrected=True)
    ends = [(ours.alphas_cumprod[t] ** 0.5).item() for t in plan.times]
    assert [alpha for alpha, _ in plan.levels] == pytest.approx([1.0, *ends[:-1]], rel=1e-6)
    assert [alpha for alpha, _ in ours.plan(7).levels] != pytest.approx([1.0, *ends[:-1]], rel=1e-3)


def test_an_extra_first_timestep_unless_corrected() -> None:
    ours, theirs = _both(INVERSE, 61, timestep_spacing="trailing")
    assert ours.timesteps[0] == theirs.timesteps[0] == -1
    assert relative_difference(*(familiar_run(scheduler).samples for scheduler in (ours, theirs))) <= TOLERANCE
    ours.set_timesteps(61, corrected=True)
    assert torch.equal(ours.timesteps, theirs.timesteps[1:])


def test_inversion_refuses_the_spacing_that_theirs_refuses_later() -> None:
    with pytest.raises(ConfigError, match="leading"):
        safelight.DDIMInverseScheduler(timestep_spacing="linspace")
    with pytest.raises(ValueError, match="linspace"):
        diffusers.DDIMInverseScheduler(timestep_spacing="linspace").set_timesteps(5)


# unCLIP


@pytest.mark.parametrize("kind", [int, torch.tensor])
@pytest.mark.parametrize("variance", ["fixed_small_log", "learned_range"])
def test_steps_to_any_time(kind: Any, variance: str) -> None:
    pair = _both(UNCLIP, 10, variance_type=variance)
    for t, end in ((777, 555), (777, 666), (777, 776), (777, 3), (600, 500), (111, -1)):
        if end < 0 and (kind is torch.tensor or variance == "learned_range"):
            continue  # a tensor is one of the timesteps; a learned variance has no lower bound at the end
        outputs = []
        for scheduler in pair:
            y = _noise(2) if variance == "fixed_small_log" else torch.cat([_noise(2), _noise(3).tanh()], dim=1)
            generator = torch.Generator().manual_seed(1)
            outputs.append(scheduler.step(y, kind(t), _noise(1), kind(end), generator).prev_sample)
        assert relative_difference(*outputs) <= 2e-6, (t, end)
    with pytest.raises(InputError, match="below timestep 777"):
        pair[0].step(_noise(2) if variance == "fixed_small_log" else torch.cat([_noise(2)] * 2, 1), 777, _noise(1), 888)


def test_without_a_goal_steps_go_along_the_timetable_when_corrected() -> None:
    scheduler = safelight.UnCLIPScheduler()
    scheduler.set_timesteps(10, corrected=True)
    x, t = _noise(1), scheduler.timesteps
    free = [scheduler.step(_noise(2), t[i], x, **_generator(UNCLIP)).prev_sample for i in range(9)]
    scheduler.set_timesteps(10)
    told = [scheduler.step(_noise(2), t[i], x, t[i + 1], **_generator(UNCLIP)).prev_sample for i in range(9)]
    assert torch.equal(torch.stack(free), torch.stack(told))
    short = scheduler.step(_noise(2), t[4], x, **_generator(UNCLIP)).prev_sample
    assert relative_difference(short, told[4]) > 0.05


def test_unclip_is_ddpm_with_its_own_timetable() -> None:
    config = {
        "prediction_type": "v_prediction",
        "variance_type": "fixed_small_log",
        "beta_schedule": "squaredcos_cap_v2",
    }
    ours = safelight.UnCLIPScheduler(**config)
    ddpm = safelight.DDPMScheduler(timestep_spacing="linspace", **config)
    plans = [scheduler.plan(23) for scheduler in (ours, ddpm)]
    assert plans[0].times == plans[1].times
    for i in range(23):
        z = _noise(3)
        pair = zip((ours, ddpm), plans, strict=True)
        samples = [scheduler.advance(plan, i, _noise(2), _noise(1), noise=z).sample for scheduler, plan in pair]
        # In the last step β and 1 − ᾱ are the same number, which the reference rounds in two ways.
        assert relative_difference(*samples) <= (1e-6 if i < 22 else 1e-3)


@pytest.mark.parametrize("config", [{"beta_schedule": "linear"}, {"variance_type": "learned"}])
def test_unclip_refuses_what_theirs_cannot(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        safelight.UnCLIPScheduler(**config)
    with pytest.raises((ValueError, TypeError)):
        _step(_both(UNCLIP, 5, **config)[1] if "variance_type" in config else diffusers.UnCLIPScheduler(**config), 500)


@pytest.mark.parametrize("steps", [1, 1001])
def test_unclip_needs_two_ends(steps: int) -> None:
    with pytest.raises(InputError, match="from 2 to 1000"):
        safelight.UnCLIPScheduler().set_timesteps(steps)


# RePaint


def _inpainted(scheduler: Any, steps: int, jump: int, again: int, eta: float) -> torch.Tensor:
    """As diffusers' pipeline: arguments by position, η afterwards."""
    scheduler.set_timesteps(steps, jump, again, "cpu")
    scheduler.eta = eta
    generator, x, last, seen = torch.Generator().manual_seed(1), start(1.0), scheduler.timesteps[0] + 1, []
    for t in scheduler.timesteps:
        if t < last:
            x = scheduler.step(network(x, t), t, x, _noise(7), (_noise(8) > 0).float(), generator).prev_sample
        else:
            x = scheduler.undo_step(x, last, generator)
        seen.append(x)
        last = t
    return torch.stack(seen)


@pytest.mark.parametrize("jumps", [(10, 10), (4, 3), (1, 2), (3, 1), (40, 5)])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_runs_of_the_pipeline(jumps: tuple[int, int], eta: float) -> None:
    runs = [_inpainted(scheduler, 20, *jumps, eta) for scheduler in _both(REPAINT, clip_sample=False)]
    assert relative_difference(*runs) <= TOLERANCE


def test_more_steps_than_trained_are_as_many_as_trained() -> None:
    ours, theirs = _both(REPAINT, 150, num_train_timesteps=100)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert ours.num_inference_steps == theirs.num_inference_steps == 100


def test_going_back_reaches_the_noise_level_of_the_next_step_when_corrected() -> None:
    scheduler = safelight.RePaintScheduler()
    for corrected in (False, True):
        plan = scheduler.plan(20, jump_length=4, jump_n_sample=2, corrected=corrected)
        backs = [i for i, row in enumerate(plan.rows) if row.back is not None]
        assert [plan.times[i] for i in backs] == [600, 400, 200, 0]
        for i in backs:
            keep, draws = plan.rows[i].back
            left = plan.rows[i].known.on_x * keep  # of the signal
            assert keep**2 + sum(draw**2 for draw in draws) == pytest.approx(1, abs=1e-4)
            assert (left == pytest.approx(plan.levels[i + 1][0], rel=1e-5)) == corrected
            assert left <= plan.levels[i + 1][0] * (1 + 1e-5)
            assert len(draws) == (1 if corrected else 4 * 50)


def test_undoing_a_step_reaches_its_noise_level_when_corrected() -> None:
    scheduler, x = safelight.RePaintScheduler(), torch.full(SHAPE, 1.0).double()
    scheduler.set_timesteps(20, 4, 2, corrected=True)
    for t in (900, 50, 0):
        below = scheduler.alphas_cumprod[t - 50] if t else torch.tensor(1.0)
        keep = (scheduler.alphas_cumprod[t] / below).item()
        drawn = torch.randn(SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        undone = scheduler.undo_step(x, t, torch.Generator().manual_seed(4))
        torch.testing.assert_close(undone, keep**0.5 * x + (1 - keep) ** 0.5 * drawn)


def test_a_mask_of_any_type_and_a_picture_for_all() -> None:
    scheduler = safelight.RePaintScheduler()
    scheduler.set_timesteps(10)
    t, mask = scheduler.timesteps[2], _noise(8)[:1] > 0
    arguments = (_noise(2).double(), t, _noise(1).double(), _noise(7)[:1])
    results = [scheduler.step(*arguments, one, **_generator(REPAINT)).prev_sample for one in (mask, mask.double())]
    assert torch.equal(*results)
    assert results[0].dtype == torch.float64
    free = scheduler.step(*arguments[:3], **_generator(REPAINT)).prev_sample
    assert torch.equal(results[0][~mask.expand(SHAPE)], free[~mask.expand(SHAPE)])
    assert not torch.equal(results[0], free)


@pytest.mark.parametrize("argument", ["jump_length", "jump_n_sample"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True])
def test_jumps_that_cannot_be(argument: str, value: Any) -> None:
    with pytest.raises(InputError, match=argument):
        safelight.RePaintScheduler().set_timesteps(10, **{argument: value})


def test_errors_of_repaint_name_what_is_wrong() -> None:
    scheduler = safelight.RePaintScheduler(eta=1.2)
    with pytest.raises(InputError, match=r"eta is 1\.2"):
        scheduler.plan(10)
    scheduler.eta = 0.5
    plan = scheduler.plan(30)
    i = next(i for i, row in enumerate(plan.rows) if row.back is not None)
    with pytest.raises(InputError, match="to go back"):
        scheduler.advance(plan, i, _noise(1), _noise(2), noise=_noise(3))
