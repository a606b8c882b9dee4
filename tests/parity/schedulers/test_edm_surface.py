"""The familiar surface of the solvers for EDM's networks against diffusers."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import safelight
from safelight.errors import InputError, UnknownArgumentError

from ...helpers.compare import relative_difference
from ...helpers.sampling import SHAPE, familiar_run, network, noised_on_a_timetable

EULER, MULTISTEP, COSINE = (
    "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler",
    "CosineDPMSolverMultistepScheduler",
)
NAMES = [EULER, MULTISTEP, COSINE]
TOLERANCE = 1e-5

each = pytest.mark.parametrize("name", NAMES)
pytestmark = pytest.mark.filterwarnings("ignore:Should have")  # theirs asks for noise beyond the ends of its tree


def _both(name: str, steps: int | None = None, **config: Any) -> list[Any]:
    pair = [getattr(library, name)(**config) for library in (safelight, diffusers)]
    for scheduler in pair if steps else []:
        scheduler.set_timesteps(steps)
    return pair


def _noise(seed: int = 3) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def _seeded() -> dict[str, Any]:
    return {"generator": torch.Generator().manual_seed(1)}


@pytest.mark.parametrize("steps", [None, 12])
@pytest.mark.parametrize("config", [{}, {"sigma_schedule": "karras"}, {"final_sigmas_type": "sigma_min"}])
@each
def test_attributes(name: str, config: dict[str, Any], steps: int | None) -> None:
    ours, theirs = _both(name, steps, **config)
    for table in ("timesteps", "sigmas"):
        one, other = getattr(ours, table), getattr(theirs, table)
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-6 if config.get("final_sigmas_type") else 0, atol=0)
    assert ours.init_noise_sigma == theirs.init_noise_sigma
    assert (ours.order, len(ours), ours.num_inference_steps) == (theirs.order, len(theirs), steps)
    assert [cls.__name__ for cls in ours.compatibles] == [name]
    assert not hasattr(ours, "betas")


@pytest.mark.parametrize("sigma", [0.4, 2, torch.tensor([7.0]), torch.tensor([0.01, 60.0]).reshape(2, 1, 1, 1)])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@each
def test_preconditioning(name: str, prediction: str, sigma: Any) -> None:
    pair = _both(name, prediction_type=prediction)
    level = sigma if isinstance(sigma, torch.Tensor) else float(sigma)
    for method, arguments in (
        ("precondition_inputs", (_noise(1), level)),
        ("precondition_outputs", (_noise(1), _noise(2), level)),
        ("precondition_noise", (level,)),
    ):
        one, other = (getattr(scheduler, method)(*arguments) for scheduler in pair)
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@each
def test_results_at_their_own_scale(name: str) -> None:
    """Early samples are hundreds of times larger, and hide what is wrong with the last."""
    ours, theirs = (familiar_run(scheduler, _seeded()).samples[-3:] for scheduler in _both(name, 20))
    for one, other in zip(ours, theirs, strict=True):
        assert relative_difference(one, other) <= TOLERANCE


@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("stepped", [False, True])
@each
def test_add_noise(name: str, begin: bool, stepped: bool) -> None:
    results = [noised_on_a_timetable(scheduler, begin, stepped) for scheduler in _both(name, 7)]
    assert relative_difference(*results) <= 1e-6


@pytest.mark.parametrize("begin", [1, 4, 9])
@each
def test_a_run_that_starts_inside_the_timetable(name: str, begin: int) -> None:
    runs = []
    for scheduler in _both(name, 10):
        scheduler.set_begin_index(begin)
        runs.append(familiar_run(scheduler, _seeded(), begin))
    assert relative_difference(runs[0].samples, runs[1].samples) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@each
def test_half_precision_keeps_its_dtype(name: str, dtype: torch.dtype) -> None:
    results = []
    for scheduler in _both(name, 5):
        x = (_noise() * scheduler.init_noise_sigma).to(dtype)
        for t in scheduler.timesteps:
            y = network(scheduler.scale_model_input(x, t).float(), t).to(dtype)
            x = scheduler.step(y, t, x, **_seeded()).prev_sample
            assert x.dtype == dtype
        results.append(x.float())
    assert relative_difference(*results) <= 16 * torch.finfo(dtype).eps


@pytest.mark.parametrize(("name", "config"), [(MULTISTEP, {"algorithm_type": "sde-dpmsolver++"}), (COSINE, {})])
def test_a_generator_for_each_image(name: str, config: dict[str, Any]) -> None:
    runs = []
    for scheduler in _both(name, 8, **config):
        generators = [torch.Generator().manual_seed(seed) for seed in (11, 12)]
        runs.append(familiar_run(scheduler, {"generator": generators}).samples)
    assert relative_difference(*runs) <= TOLERANCE


@each
def test_signatures_tuples_and_positions(name: str) -> None:
    ours, theirs = _both(name, 6)
    for method in ("step", "set_timesteps", "add_noise", "scale_model_input"):
        known = inspect.signature(getattr(ours, method)).parameters
        assert set(inspect.signature(getattr(theirs, method)).parameters) <= set(known), method
    options = (3.0, 0.1, 50.0, 1.1) if name == EULER else ()
    given = (_noise(5),) if name == EULER else ()
    results = []
    for scheduler in (ours, theirs):
        t, x = scheduler.timesteps[2], _noise(1)
        scheduler.scale_model_input(x, t)
        generator = torch.Generator().manual_seed(1)
        results.append(scheduler.step(_noise(2), t, x, *options, generator, False, *given))
        assert isinstance(results[-1], tuple)
    assert relative_difference(results[0][0], results[1][0]) <= TOLERANCE


@each
def test_files_round_trip_between_the_libraries(name: str, tmp_path: Path) -> None:
    ours, theirs = _both(name, sigma_min=0.01, rho=6.0)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    texts = [(tmp_path / where / "scheduler_config.json").read_text() for where in ("ours", "theirs")]
    assert texts[0] == texts[1]
    again = getattr(safelight, name).from_pretrained(tmp_path / "theirs").config
    assert {key: again[key] for key in inspect.signature(getattr(safelight, name)).parameters} == {
        key: value for key, value in ours.config.items() if not key.startswith("_")
    }


# Euler's own


def test_steps_with_a_known_original() -> None:
    results = []
    for scheduler in _both(EULER, 6):
        x, generator = _noise(1) * 80, torch.Generator().manual_seed(1)
        for i, t in enumerate(scheduler.timesteps):
            y = network(scheduler.scale_model_input(x, t), t)
            known = _noise(6) if i % 2 else None
            out = scheduler.step(y, t, x, s_churn=2.0, generator=generator, pred_original_sample=known)
            assert known is None or torch.equal(out.pred_original_sample, known)
            x = out.prev_sample
            results.append(x)
    ours, theirs = torch.stack(results[:6]), torch.stack(results[6:])
    assert relative_difference(ours, theirs) <= TOLERANCE
    assert relative_difference(ours[-1], theirs[-1]) <= TOLERANCE


def test_known_originals_are_checked() -> None:
    scheduler = safelight.EDMEulerScheduler()
    scheduler.set_timesteps(6)
    t, x = scheduler.timesteps[0], _noise()
    with pytest.raises(InputError, match="pred_original_sample has shape"):
        scheduler.step(x, t, x, pred_original_sample=x[:1])
    other = safelight.EDMDPMSolverMultistepScheduler()
    other.set_timesteps(6)
    with pytest.raises(UnknownArgumentError, match="pred_original_sample"):
        other.step(x, t, x, pred_original_sample=x)


@pytest.mark.parametrize("schedule", ["karras", "exponential"])
def test_custom_sigmas_that_fall_are_the_sigmas(schedule: str) -> None:
    """Theirs takes them for places in the grid: no numbers with Karras' schedule, ignored with the other."""
    ours, theirs = _both(EULER, sigma_schedule=schedule)
    given = torch.tensor([60.0, 9.0, 1.0, 0.2])
    theirs.set_timesteps(sigmas=given)
    if schedule == "karras":
        assert not torch.isfinite(theirs.timesteps).all()
    else:
        assert theirs.sigmas[0] == pytest.approx(80.0)
    for values in (given, given.tolist(), given.numpy()):
        ours.set_timesteps(sigmas=values)
        torch.testing.assert_close(ours.sigmas[:-1], given, rtol=1e-6, atol=0)
        torch.testing.assert_close(ours.timesteps, given.log() / 4, rtol=1e-6, atol=1e-7)
    ours.set_timesteps(12)
    whole = familiar_run(ours).samples
    ours.set_timesteps(sigmas=ours.sigmas[:-1])
    assert torch.equal(familiar_run(ours).samples, whole)


def test_the_exponential_schedule_heeds_only_the_number_of_places() -> None:
    ours, theirs = _both(EULER, sigma_schedule="exponential")
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(sigmas=torch.tensor([0.0, 0.5, 0.6, 1.0]))
    assert torch.equal(ours.sigmas, theirs.sigmas)


@pytest.mark.parametrize("sigmas", [[0.5, 3.0], [-0.5, 0.5], [3.0, 0.0], [1.0, 1.0], [[1.0]], 2.0, [0.1, 0.9, 0.5]])
def test_custom_sigmas_that_cannot_be(sigmas: Any) -> None:
    with pytest.raises(InputError, match="sigmas"):
        safelight.EDMEulerScheduler().set_timesteps(sigmas=sigmas)
