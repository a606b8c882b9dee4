"""The familiar surface on its own: what scripts do with it, and what they do wrong."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch

import safelight
from safelight import (
    ConfigMixin,
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
    register_to_config,
)
from safelight.errors import ConfigError, FrozenConfigError, InputError, UnknownArgumentError
from safelight.outputs import Output
from safelight.schedulers import scheduling_utils

from ..helpers.sampling import SHAPE, familiar_run, network, start

X, Y = start(1.0), network(start(1.0), 3)


def _ready(cls: Any = DDIMScheduler, steps: int = 5, **config: Any) -> Any:
    scheduler = cls(**config)
    scheduler.set_timesteps(steps)
    return scheduler


def _step(scheduler: Any, t: Any = None, **arguments: Any) -> Any:
    return scheduler.step(Y, scheduler.timesteps[0] if t is None else t, X, **arguments)


@pytest.mark.parametrize(
    ("wrong", "error", "named"),
    [
        (lambda: _step(_ready(), etta=0.5), UnknownArgumentError, r"DDIMScheduler\.step .*did you mean 'eta'"),
        (lambda: _step(_ready(PNDMScheduler), eta=0.5), UnknownArgumentError, "PNDMScheduler"),
        (lambda: _step(_ready(EulerDiscreteScheduler), s_chrun=0.5), UnknownArgumentError, "s_churn"),
        (lambda: _step(_ready(DDPMScheduler), variance_noise=X), UnknownArgumentError, "variance_noise"),
        (lambda: _step(_ready(), eta=0.5, variance_noise=X, generator=torch.Generator()), InputError, "both given"),
        (lambda: _step(_ready(), eta=2.0), InputError, "eta is 2.0"),
        (lambda: _step(_ready(EulerDiscreteScheduler), s_churn=-1.0), InputError, "s_churn is -1"),
        (lambda: _step(_ready(DDPMScheduler), 333), InputError, "timestep 333 .*800"),
        (lambda: _step(_ready(), 1000), InputError, "timestep 1000"),
        (lambda: _step(_ready(), 12.5), InputError, "timestep 12.5"),
        (lambda: _step(_ready(EulerDiscreteScheduler), 0), InputError, "integer 0.*loop index"),
        (lambda: _step(_ready(EulerDiscreteScheduler), torch.tensor(1)), InputError, "integer 1"),
        (lambda: _step(_ready(), torch.tensor([800, 800])), InputError, r"shape \(2,\)"),
        (lambda: _ready().step(network, 800, X), InputError, "model_output is of type function"),
        (lambda: _ready().step(Y[:1], 800, X), InputError, r"\(1, 3, 6, 5\)"),
        (lambda: DDIMScheduler().set_timesteps(), InputError, "needs num_inference_steps"),
        (lambda: DDIMScheduler().set_timesteps(-1), InputError, "num_inference_steps is -1"),
        (lambda: DDIMScheduler().set_timesteps(5, eta_=1.0), UnknownArgumentError, "eta"),
        (lambda: PNDMScheduler().set_timesteps(3), InputError, "skip_prk_steps=True"),
        (lambda: DDIMScheduler(steps_offset=1).set_timesteps(1000), InputError, "steps_offset=1"),
        (lambda: EulerDiscreteScheduler(timestep_spacing="leading").set_timesteps(1001), InputError, "1001"),
        (lambda: EulerDiscreteScheduler().set_timesteps(sigmas=[1.0]), InputError, "at least two"),
        (lambda: EulerDiscreteScheduler().set_timesteps(sigmas=[3.0, 0.0, -1.0]), InputError, "≥ 0"),
        (lambda: EulerDiscreteScheduler().set_timesteps(sigmas=[3.0, 3.0]), InputError, "smaller than the one before"),
        (lambda: EulerDiscreteScheduler().set_timesteps(timesteps=[1000.0, 3.0]), InputError, r"\[0, 999\]"),
        (
            lambda: EulerDiscreteScheduler(use_karras_sigmas=True).set_timesteps(timesteps=[3, 2]),
            InputError,
            "pass sigmas",
        ),
        (lambda: _ready().set_begin_index(5), InputError, "step 5"),
        (lambda: DDIMScheduler().add_noise(X, X, torch.tensor([3, 1000])), InputError, "timestep 1000"),
        (lambda: DDIMScheduler().add_noise(X, X, torch.tensor([-1, 3])), InputError, "timestep -1"),
        (lambda: DDIMScheduler().add_noise(X, X, torch.tensor([0.5, 3])), InputError, "timestep 0.5"),
        (lambda: _ready(EulerDiscreteScheduler).add_noise(X, X, torch.tensor([1.5, 3])), InputError, "timestep 1.5"),
        (lambda: DDIMScheduler().previous_timestep(2000), InputError, "timestep 2000"),
        (lambda: setattr(_ready(), "timesteps", torch.arange(5)), InputError, "set_timesteps"),
        (lambda: DDIMScheduler(prediction_type="eps"), ConfigError, "prediction_type is 'eps'"),
        (lambda: DDPMScheduler(variance_type="fixed"), ConfigError, "fixed_small"),
        (lambda: DDIMScheduler(beta_shedule="linear"), UnknownArgumentError, "beta_schedule"),
        (lambda: DDIMScheduler().register_to_config(prediction_type="eps"), ConfigError, "prediction_type"),
        (lambda: setattr(DDIMScheduler().config, "beta_end", 1), FrozenConfigError, "from_config"),
    ],
)
def test_errors_name_the_culprit(wrong: Any, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        wrong()


def test_a_failed_step_leaves_the_run_where_it_was() -> None:
    scheduler, clean = _ready(), _ready()
    t = scheduler.timesteps[0]
    with pytest.raises(InputError):
        scheduler.step(Y[:1], t, X)
    assert torch.equal(_step(scheduler).prev_sample, _step(clean).prev_sample)


def test_outputs() -> None:
    out = _step(_ready())
    assert isinstance(out, Output)
    assert torch.equal(out.prev_sample, out["prev_sample"])
    assert torch.equal(out[0], _step(_ready(), return_dict=False)[0])
    assert out.pred_original_sample.shape == SHAPE


def test_timesteps_by_value_by_view_and_rounded() -> None:
    for t in (800, 800.0, torch.tensor(800), torch.tensor([800.0])):
        assert torch.equal(_step(_ready(), t).prev_sample, _step(_ready()).prev_sample)
    rounded, whole = _ready(EulerDiscreteScheduler, 8), _ready(EulerDiscreteScheduler, 8)
    for t in rounded.timesteps:
        assert torch.equal(_step(rounded, t.bfloat16()).prev_sample, _step(whole, t).prev_sample)


def test_timesteps_may_be_moved_and_cast() -> None:
    scheduler = _ready(EulerDiscreteScheduler)
    wanted = familiar_run(scheduler).samples
    scheduler.set_timesteps(5)
    scheduler.timesteps = scheduler.timesteps.to(torch.float64)
    assert scheduler.timesteps.dtype == torch.float64
    assert torch.equal(familiar_run(scheduler).samples, wanted)


def test_a_second_run_without_set_timesteps_starts_anew() -> None:
    scheduler = _ready(PNDMScheduler, 6)
    first = familiar_run(scheduler).samples
    assert torch.equal(familiar_run(scheduler).samples, first)


def test_options_may_change_from_step_to_step() -> None:
    scheduler, plan = _ready(), DDIMScheduler().plan(5, eta=0.8)
    x = X
    for i, t in enumerate(scheduler.timesteps):
        eta = 0.8 if i == 2 else 0.0
        wanted = DDIMScheduler().advance(plan, i, Y, x, None, X).sample if i == 2 else None
        x = scheduler.step(Y, t, x, eta=eta, variance_noise=X if eta else None).prev_sample
        assert wanted is None or torch.equal(x, wanted)


def test_register_to_config_reaches_the_run() -> None:
    scheduler = _ready()
    scheduler.register_to_config(prediction_type="v_prediction", clip_sample=False)
    wanted = _ready(prediction_type="v_prediction", clip_sample=False)
    assert torch.equal(_step(scheduler).prev_sample, _step(wanted).prev_sample)


def test_carried_config_entries_have_no_effect() -> None:
    source = DDIMScheduler(thresholding=True, rescale_betas_zero_snr=True, beta_end=0.015)
    carried = PNDMScheduler.from_config(source.config)
    assert carried.config.thresholding is True
    assert torch.equal(familiar_run(carried).samples, familiar_run(PNDMScheduler(beta_end=0.015)).samples)
    assert DDIMScheduler.from_config(carried.config).config.thresholding is True


def test_none_as_variance_type_is_the_default() -> None:
    results = [
        _step(DDPMScheduler(**config), 500, generator=torch.Generator().manual_seed(1)).prev_sample
        for config in ({}, {"variance_type": None})
    ]
    assert torch.equal(*results)


def test_custom_timesteps_are_followed() -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(timesteps=[900, 500, 100])
    assert scheduler.num_inference_steps == 3
    assert "timesteps" in inspect.signature(scheduler.set_timesteps).parameters
    plan = scheduler.plan(timesteps=torch.tensor([900, 500, 100]))
    assert torch.equal(_step(scheduler).prev_sample, scheduler.advance(plan, 0, Y, X).sample)
    clean = scheduler.advance(plan, 2, Y, X)
    assert torch.equal(clean.sample, clean.pred_original_sample)  # the last step ends at the image
    ddpm = DDPMScheduler()
    assert not ddpm.custom_timesteps
    ddpm.set_timesteps(timesteps=[900, 500])
    assert ddpm.custom_timesteps


def test_signatures_tell_what_a_scheduler_takes() -> None:
    taken = {cls.__name__: set(inspect.signature(cls().step).parameters) for cls in (DDIMScheduler, DDPMScheduler)}
    assert {"eta", "generator", "variance_noise"} <= taken["DDIMScheduler"]
    assert "eta" not in taken["DDPMScheduler"]
    assert "sigmas" not in inspect.signature(DDIMScheduler().plan).parameters
    assert {"sigmas", "s_churn"} <= set(inspect.signature(EulerDiscreteScheduler().plan).parameters)
    assert "timesteps" not in inspect.signature(PNDMScheduler().set_timesteps).parameters


def test_schedulers_copy_and_pickle() -> None:
    scheduler = _ready(EulerDiscreteScheduler)
    _step(scheduler)
    for other in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))):
        assert other.step_index == 1
        assert other.timesteps.data_ptr() != scheduler.timesteps.data_ptr()
        t = other.timesteps[1]
        assert torch.equal(_step(other, t).prev_sample, _step(copy.deepcopy(scheduler), t.clone()).prev_sample)


def test_names_stand_where_scripts_import_them() -> None:
    from safelight.schedulers import DDIMScheduler as by_package
    from safelight.schedulers.ddim import DDIMSchedulerOutput

    assert by_package is DDIMScheduler
    assert isinstance(_step(_ready()), DDIMSchedulerOutput)
    assert scheduling_utils.SchedulerMixin is SchedulerMixin is safelight.SchedulerMixin
    assert [e.name for e in scheduling_utils.KarrasDiffusionSchedulers] == list(DDIMScheduler._compatibles)
    with pytest.raises(AttributeError, match="NoSuchScheduler"):
        safelight.schedulers.NoSuchScheduler  # noqa: B018


def test_a_class_of_a_script(tmp_path: Any) -> None:
    class Halving(SchedulerMixin, ConfigMixin):
        order = 1

        @register_to_config
        def __init__(self, factor: float = 0.5):
            self.timesteps = torch.arange(3).flip(0)

        def step(self, model_output: Any, timestep: Any, sample: Any) -> Any:
            return sample * self.config.factor

    made = Halving(factor=0.25)
    made.save_pretrained(tmp_path)
    again = Halving.from_pretrained(tmp_path)
    assert again.config.factor == 0.25
    assert again.compatibles == [Halving]
    assert torch.equal(again.step(None, 0, X), X / 4)


def test_a_script_may_replace_a_step() -> None:
    class Loud(DDIMScheduler):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            out = super().step(*args, **kwargs)
            out.prev_sample = out.prev_sample * 2
            return out

    assert torch.equal(_step(_ready(Loud)).prev_sample, _step(_ready()).prev_sample * 2)


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "SCMScheduler", "CMStochasticIterativeScheduler"])
def test_there_is_no_velocity_without_betas(name: str) -> None:
    scheduler, x = getattr(safelight, name)(), start(1.0)
    with pytest.raises(InputError, match="has no betas"):
        scheduler.get_velocity(x, x, torch.tensor([3, 4]))
