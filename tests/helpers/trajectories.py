"""Whole trajectories against diffusers, from tables of options: each option alone and every pair, every step.

A family of schedulers is a subclass of `TrajectoryParity` with `tables`. These are checked against the signatures of
diffusers' constructors, `set_timesteps` and `step`, so an option cannot be forgotten.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import diffusers
import numpy as np
import pytest
import torch

import safelight
from safelight.errors import SafelightError

from .compare import relative_difference
from .pairwise import pairwise, singles
from .sampling import SHAPE, Run, familiar_run, pure_run

Config = dict[str, Any]

TOLERANCE = 1e-5
GIVEN = "given by the test"

BETAS: Config = {
    "num_train_timesteps": [1000, 200],
    "beta_start": [0.0001, 0.002],
    "beta_end": [0.02, 0.012],
    "beta_schedule": ["linear", "scaled_linear", "squaredcos_cap_v2"],
    "trained_betas": [None, GIVEN],
}
LATENT_BETAS: Config = {**BETAS, "beta_start": [0.00085, 0.002], "beta_end": [0.012, 0.02]}
THRESHOLDS: Config = {
    "thresholding": [False, True],
    "dynamic_thresholding_ratio": [0.995, 0.8],
    "sample_max_value": [1.0, 1.7],
}
LIMITS: Config = {**THRESHOLDS, "clip_sample_range": [1.0, 0.6], "clip_sample": [True, False]}
# What the configs of multistep solvers in log-SNR begin with.
MULTISTEP: Config = {
    **BETAS,
    "solver_order": [2, 1, 3],
    "prediction_type": ["epsilon", "sample", "v_prediction", "flow_prediction"],
    **THRESHOLDS,
}
GRIDS: Config = {
    "use_karras_sigmas": [False, True],
    "use_exponential_sigmas": [False, True],
    "use_beta_sigmas": [False, True],
}
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
SPACINGS = ["leading", "linspace", "trailing"]
# `timetable` is what `set_timesteps` gets: a number of steps, or a dict of its arguments.
STEPS = [10, 5, 30, 50]
CUSTOM_TIMESTEPS = {"timesteps": [0.95, 0.7, 0.66, 0.3, 0.02]}  # as fractions of the training time
CUSTOM_SIGMAS = {"sigmas": [1.2, 0.9, 0.5, 0.2, 0.1, 0.0]}
COVERED_BY_TIMETABLE = {"num_inference_steps", "timesteps", "sigmas"}
REFUSALS = (ValueError, RuntimeError, LookupError, NameError, AssertionError, TypeError, AttributeError)


class Reason(NamedTuple):
    """Combinations that diffusers refuses or turns non-finite: why, which, and what is true of ours instead."""

    why: str
    applies: Callable[[str, Config], bool]
    # "refuses", "is right" (as diffusers with the changes `like`), or "is finite" (right by analysis; where theirs
    # depends on rounding and happens to be finite, equal to it)
    ours: str
    like: Config = {}  # noqa: RUF012  (where ours refuses: theirs ignores silently what these change)


class Bound(NamedTuple):
    """Combinations whose conditioning makes rounding errors larger than `TOLERANCE`: why, which, and how large."""

    why: str
    applies: Callable[[str, Config], bool]
    tolerance: float


class Case(NamedTuple):
    name: str
    combination: Config
    reason: Reason | None


def grid_flags(c: Config) -> int:
    """How many sigma grids a config asks for."""
    return sum(bool(c.get(flag)) for flag in GRIDS)


ONE_GRID = Reason("only one sigma grid can be chosen", lambda name, c: grid_flags(c) > 1, "refuses")
GRID_OR_TIMESTEPS = Reason(
    "custom timesteps contradict a sigma grid",
    lambda name, c: c["timetable"] is CUSTOM_TIMESTEPS and grid_flags(c) == 1,
    "refuses",
)


class TrajectoryParity:
    """Tests of a family of schedulers; a subclass whose name begins with Test gives the tables."""

    tables: ClassVar[dict[str, dict[str, list[Any]]]] = {}  # the first value of an option is its default
    reasons: ClassVar[list[Reason]] = []
    # Combinations of three and more options that matter or go wrong.
    further: ClassVar[list[tuple[str, Config, Reason | None]]] = []
    unseeded: ClassVar[tuple[str, ...]] = ()  # classes whose step takes no generator
    wider: ClassVar[list[Bound]] = []
    begin_index: int | None = None  # given to both, where theirs would look the first timestep up and find the second
    # Arguments that theirs takes without a meaning for the numbers, or that a test of their own covers.
    left_out: ClassVar[frozenset[str]] = frozenset()

    # what a family may do otherwise

    def set_timesteps(self, scheduler: Any, config: Config) -> None:
        timetable = config["timetable"]
        if timetable is CUSTOM_TIMESTEPS:
            train = config["num_train_timesteps"]
            timetable = {"timesteps": [int(fraction * train) for fraction in timetable["timesteps"]]}
        arguments = timetable if isinstance(timetable, dict) else {"num_inference_steps": timetable}
        takes = {*inspect.signature(getattr(diffusers, type(scheduler).__name__).set_timesteps).parameters}
        takes -= {"num_train_timesteps"}  # the constructor's; another one comes with the timetable
        scheduler.set_timesteps(**arguments, **{key: value for key, value in config.items() if key in takes})

    def step_options(self, name: str, config: Config) -> Config:
        """Keyword arguments of `step` that are no options of the table."""
        return {} if name in self.unseeded else {"generator": torch.Generator().manual_seed(1)}

    def run(self, scheduler: Any, step: Config, config: Config) -> Run:
        return familiar_run(scheduler, step, learned=config.get("variance_type") or "", dtype=config["dtype"])

    def tolerance(self, name: str, config: Config) -> float:
        return max((bound.tolerance for bound in self.wider if bound.applies(name, config)), default=TOLERANCE)

    # machinery

    @classmethod
    def table(cls, name: str) -> dict[str, list[Any]]:
        return {**cls.tables[name], "dtype": [torch.float32, torch.float64]}

    @classmethod
    def defaults(cls, name: str) -> Config:
        return {option: values[0] for option, values in cls.table(name).items()}

    @classmethod
    def reason(cls, name: str, combination: Config) -> Reason | None:
        config = cls.defaults(name) | combination
        return next((reason for reason in cls.reasons if reason.applies(name, config)), None)

    @classmethod
    def valid(cls, name: str, combination: Config) -> bool:
        """Whether both libraries take the combination, so that it shows the options in it to be right."""
        reason = cls.reason(name, combination)
        return reason is None or reason.ours != "refuses"

    @classmethod
    @functools.cache
    def cases(cls) -> dict[str, Case]:
        cases = {}
        for name in cls.tables:
            table = cls.table(name)
            alone = singles(table)
            cover = {f"{steps}-steps": [one | {"timetable": steps} for one in alone if "timetable" not in one]
                     for steps in STEPS if steps in table["timetable"][1:]}  # fmt: skip
            cover |= {"single": alone, "pairs": pairwise(table, functools.partial(cls.valid, name))}
            for kind, combinations in cover.items():
                for i, combination in enumerate(combinations):
                    cases[f"{name}-{kind}-{i}"] = Case(name, combination, cls.reason(name, combination))
        for i, (name, combination, reason) in enumerate(cls.further):
            cases[f"{name}-further-{i}"] = Case(name, combination, reason or cls.reason(name, combination))
        return cases

    def attempt(self, library: Any, name: str, combination: Config) -> tuple[Run, Any, Config]:
        config = self.defaults(name) | combination
        train = config.get("num_train_timesteps", 1000)
        if config.get("trained_betas") is GIVEN:
            config["trained_betas"] = np.linspace(0.001, 9 / train, train)
        constructor = inspect.signature(getattr(diffusers, name)).parameters
        scheduler = getattr(library, name)(**{key: value for key, value in config.items() if key in constructor})
        self.set_timesteps(scheduler, config)
        begin = config.get("begin_index", self.begin_index)
        if begin is not None:
            scheduler.set_begin_index(begin)
        calls = inspect.signature(getattr(diffusers, name).step).parameters
        step = {key: config[key] for key in self.tables[name] if key in calls}
        if step.pop("variance_noise", None) is GIVEN:
            step["variance_noise"] = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
        else:
            step |= self.step_options(name, config)
        return self.run(scheduler, step, config), scheduler, step

    # tests

    def test_the_table_has_every_option(self, name: str) -> None:
        theirs, ours = getattr(diffusers, name), getattr(safelight, name)
        constructor = inspect.signature(theirs).parameters
        assert [*inspect.signature(ours).parameters] == [key for key in constructor if key not in self.left_out]
        options = {*constructor, *inspect.signature(theirs.set_timesteps).parameters}
        options |= {*inspect.signature(theirs.step).parameters} - {"model_output", "timestep", "sample"}
        options -= {"self", "device", "generator", "return_dict", *COVERED_BY_TIMETABLE, *self.left_out}
        assert options == set(self.tables[name]) - {"timetable"}
        for option, parameter in inspect.signature(ours).parameters.items():
            assert self.tables[name][option][0] == parameter.default == constructor[option].default
        assert set(STEPS) <= {steps for steps in self.tables[name]["timetable"] if isinstance(steps, int)}

    def test_every_step_equals(self, case: str) -> None:
        name, combination, reason = self.cases()[case]
        config = self.defaults(name) | combination
        rounding = reason is not None and reason.ours == "is finite"
        if reason is not None and not rounding:
            self.check_that_theirs_fails(name, combination, reason)
            if reason.ours == "refuses":
                with pytest.raises(SafelightError):
                    self.attempt(safelight, name, combination)
                return
        ours, scheduler, step = self.attempt(safelight, name, combination)
        assert torch.isfinite(ours.samples).all()
        theirs = self.theirs(name, combination | (reason.like if reason else {}), rounding)
        if theirs is not None:
            differences = {
                field: relative_difference(getattr(ours, field), getattr(theirs, field))
                for field in Run._fields
                if getattr(theirs, field) is not None
            }
            assert max(differences.values()) <= self.tolerance(name, config), (combination, differences)

        self.check_the_pure_run(scheduler, ours, step, config)

    def check_the_pure_run(self, scheduler: Any, ours: Run, step: Config, config: Config) -> None:
        """The same bits as on the familiar surface."""
        noise, generator = step.pop("variance_noise", None), torch.Generator().manual_seed(1)
        learned, plan = config.get("variance_type") or "", scheduler._active
        pure = pure_run(scheduler, plan, generator, noise, learned=learned, dtype=config["dtype"])
        assert torch.equal(pure.samples, ours.samples)
        assert ours.originals is None or torch.equal(pure.originals, ours.originals)

    def theirs(self, name: str, combination: Config, may_fail: bool) -> Run | None:
        """Theirs; None where it fails or is not finite, which it may only where rounding decides."""
        try:
            run = self.attempt(diffusers, name, combination)[0]
        except REFUSALS:
            assert may_fail
            return None
        finite = bool(torch.isfinite(run.samples).all())
        assert finite or may_fail
        return run if finite else None

    def check_that_theirs_fails(self, name: str, combination: Config, reason: Reason) -> None:
        if reason.ours == "refuses" and reason.like:
            runs = [self.attempt(diffusers, name, one)[0] for one in (combination, combination | reason.like)]
            torch.testing.assert_close(runs[0].samples, runs[1].samples, rtol=0, atol=0, equal_nan=True)
            return
        with pytest.raises(REFUSALS):
            wrong, _, _ = self.attempt(diffusers, name, combination)
            assert torch.isfinite(wrong.samples).all()

    def test_every_reason_occurs(self) -> None:
        found = [case.reason for case in self.cases().values()]
        assert None in found
        assert not [reason.why for reason in self.reasons if reason not in found]

    def test_every_pair_of_values_meets(self, name: str) -> None:
        table = self.table(name)
        cover = [case for key, case in self.cases().items() if key.startswith(f"{name}-pairs")]
        for (a, xs), (b, ys) in itertools.combinations(table.items(), 2):
            met = [case.combination for case in cover if {a, b} <= {*case.combination}]
            pairs = {(xs.index(row[a]), ys.index(row[b])) for row in met}
            assert pairs == set(itertools.product(range(len(xs)), range(len(ys)))), (name, a, b)
        for case in cover:  # a refused one shows only that its two options contradict each other
            assert self.valid(name, case.combination) or len(case.combination) == 2, case


class RoundedTrajectoryParity(TrajectoryParity):
    """For families whose coefficients lose digits in diffusers, which makes them of float32 noise levels.

    Where that takes a `wider` bound, theirs is compared a second time, all in float64, at `TOLERANCE`.
    """

    exactly = False

    def set_timesteps(self, scheduler: Any, config: Config) -> None:
        super().set_timesteps(scheduler, config)
        if self.exactly and isinstance(scheduler, diffusers.SchedulerMixin):
            scheduler.sigmas = scheduler.sigmas.double()

    def test_every_step_equals(self, case: str) -> None:
        super().test_every_step_equals(case)
        name, combination, reason = self.cases()[case]
        known = reason is None or reason.ours == "is right"
        if known and self.tolerance(name, self.defaults(name) | combination) > TOLERANCE:
            self.exactly = True
            double = combination | {"dtype": torch.float64}
            theirs = self.attempt(diffusers, name, double | (reason.like if reason else {}))[0].samples
            difference = relative_difference(self.attempt(safelight, name, double)[0].samples, theirs)
            assert difference <= TOLERANCE, (combination, difference)
