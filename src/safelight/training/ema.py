"""The exponential moving average of a model's parameters, which is what gets sampled and shipped."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError, InputError

# The scalar part of the state, with the types that a state read from a file may have.
_STATE: dict[str, tuple[type, ...]] = {
    "decay": (float, int),
    "min_decay": (float, int),
    "optimization_step": (int,),
    "update_after_step": (int,),
    "use_ema_warmup": (bool,),
    "inv_gamma": (float, int),
    "power": (float, int),
}


class EMAModel:
    """A running average of parameters, shadow ← decay·shadow + (1 − decay)·parameter at every `step`.

    The decay rises with the number of steps n: (1+n)/(10+n), or with `use_ema_warmup` 1 − (1 + n/inv_gamma)^(−power).
    It is held between `min_decay` and `decay`, and is 0 (a plain copy) until `update_after_step`. Parameters that
    need no gradient are copied. `foreach` does all tensors in one fused call (the result may differ in the last bit).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        decay: float = 0.9999,
        min_decay: float = 0.0,
        update_after_step: int = 0,
        use_ema_warmup: bool = False,
        inv_gamma: float = 1.0,
        power: float = 2 / 3,
        foreach: bool = False,
        model_cls: Any | None = None,
        model_config: Mapping[str, Any] | None = None,
    ):
        if isinstance(parameters, nn.Module):
            raise InputError(f"EMAModel averages parameters: pass {type(parameters).__name__.lower()}.parameters()")
        self.shadow_params = [parameter.detach().clone() for parameter in parameters]
        self.temp_stored_params: list[torch.Tensor] | None = None
        self.decay, self.min_decay, self.update_after_step = decay, min_decay, update_after_step
        self.use_ema_warmup, self.inv_gamma, self.power = use_ema_warmup, inv_gamma, power
        self.optimization_step = 0
        self.cur_decay_value: float | None = None
        self.foreach = foreach
        self.model_cls, self.model_config = model_cls, model_config

    def get_decay(self, optimization_step: int) -> float:
        """The decay that step number `optimization_step` (from 1) uses."""
        n = optimization_step - self.update_after_step - 1
        if n <= 0:
            return 0.0
        rising = 1 - (1 + n / self.inv_gamma) ** -self.power if self.use_ema_warmup else (1 + n) / (10 + n)
        return max(min(rising, self.decay), self.min_decay)

    @torch.no_grad()
    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Take the parameters as they are after an optimiser step into the average."""
        pairs = self._pairs(parameters)
        self.optimization_step += 1
        self.cur_decay_value = self.get_decay(self.optimization_step)
        rest = 1 - self.cur_decay_value
        averaged = [(shadow, value) for shadow, value in pairs if value.requires_grad]
        for shadow, value in pairs:
            if not value.requires_grad:
                shadow.copy_(value)
        if self.foreach and averaged:
            shadows, values = map(list, zip(*averaged, strict=True))
            torch._foreach_sub_(shadows, torch._foreach_sub(shadows, values), alpha=rest)
            return
        for shadow, value in averaged:
            shadow.sub_(rest * (shadow - value))

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[nn.Parameter]) -> None:
        """Overwrite `parameters` with the average."""
        for shadow, value in self._pairs(parameters):
            value.copy_(shadow)

    def store(self, parameters: Iterable[nn.Parameter]) -> None:
        """Keep a copy of `parameters` for `restore`."""
        self.temp_stored_params = [parameter.detach().cpu().clone() for parameter in parameters]

    @torch.no_grad()
    def restore(self, parameters: Iterable[nn.Parameter]) -> None:
        """Put back what `store` kept; raises `InputError` if nothing was stored."""
        if self.temp_stored_params is None:
            raise InputError("there are no stored parameters to restore: call store(parameters) first")
        for stored, value in zip(self.temp_stored_params, parameters, strict=True):
            value.copy_(stored)
        self.temp_stored_params = None

    @contextlib.contextmanager
    def applied_to(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Inside the `with` block `parameters` hold the average; afterwards, even after an error, their own values."""
        parameters = list(parameters)
        self.store(parameters)
        try:
            self.copy_to(parameters)
            yield
        finally:
            self.restore(parameters)

    def to(self, device: Any = None, dtype: torch.dtype | None = None, non_blocking: bool = False) -> None:
        """Move the average; `dtype` applies to its floating-point tensors only."""
        self.shadow_params = [
            shadow.to(device, dtype if shadow.is_floating_point() else None, non_blocking=non_blocking)
            for shadow in self.shadow_params
        ]

    def pin_memory(self) -> None:
        self.shadow_params = [shadow.pin_memory() for shadow in self.shadow_params]

    def state_dict(self) -> dict[str, Any]:
        """The scalars of the average and, under `shadow_params`, its tensors (references, as in torch)."""
        return {**{name: getattr(self, name) for name in _STATE}, "shadow_params": self.shadow_params}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a state; entries that are absent stay as they are. Raises `ConfigError` for one that cannot be."""
        known = {name: value for name, value in state_dict.items() if name in _STATE}
        for name, value in known.items():
            if not isinstance(value, _STATE[name]) or (isinstance(value, bool) and bool not in _STATE[name]):
                kinds = " or ".join(kind.__name__ for kind in _STATE[name])
                raise ConfigError(f"{name} of an average is {value!r}; it must be of type {kinds}")
        if not 0 <= known.get("decay", 0.0) <= 1:
            raise ConfigError(f"decay of an average is {known['decay']}; it must be between 0 and 1")
        shadows = state_dict.get("shadow_params")
        if shadows is not None:
            if not isinstance(shadows, list) or not all(isinstance(shadow, torch.Tensor) for shadow in shadows):
                raise ConfigError("shadow_params of an average must be a list of tensors")
            self.shadow_params = copy.deepcopy(shadows)
        self.__dict__.update(known)

    def save_pretrained(self, path: str | os.PathLike) -> None:
        """Write the average as a model of class `model_cls`, with the scalars of the average in its config."""
        if self.model_cls is None or self.model_config is None:
            missing = "model_cls" if self.model_cls is None else "model_config"
            raise ConfigError(f"save_pretrained needs {missing}: give it when building EMAModel")
        model = self.model_cls.from_config(self.model_config)
        model.register_to_config(**{name: getattr(self, name) for name in _STATE})
        self.copy_to(model.parameters())
        model.save_pretrained(path)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, model_cls: Any, foreach: bool = False) -> EMAModel:
        """Read an average that `save_pretrained` wrote."""
        model = model_cls.from_pretrained(path)
        average = cls(model.parameters(), foreach=foreach, model_cls=model_cls, model_config=model.config)
        average.load_state_dict({name: model.config[name] for name in _STATE if name in model.config})
        return average

    def _pairs(self, parameters: Iterable[nn.Parameter]) -> list[tuple[torch.Tensor, nn.Parameter]]:
        values = list(parameters)
        if [shadow.shape for shadow in self.shadow_params] != [value.shape for value in values]:
            raise InputError(
                f"the average was built for {len(self.shadow_params)} parameters, of other shapes than the "
                f"{len(values)} given"
            )
        return list(zip(self.shadow_params, values, strict=True))
