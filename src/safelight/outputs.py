"""Typed results that can be read as attributes, by key, or as a tuple."""

from __future__ import annotations

import dataclasses
from collections.abc import ItemsView, Iterator, KeysView, ValuesView
from typing import Any


class Output:
    """Base of the result dataclasses: `out.sample`, `out["sample"]`, `out[0]` and `out.to_tuple()` all work.

    Subclasses are dataclasses. Fields that are None are left out of the tuple, as in the field's other libraries.
    """

    def _present(self) -> dict[str, Any]:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return {f.name: getattr(self, f.name) for f in fields if getattr(self, f.name) is not None}

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self._present().values())

    def __getitem__(self, key: str | int | slice) -> Any:
        return self._present()[key] if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())

    def __len__(self) -> int:
        return len(self._present())

    def __contains__(self, key: object) -> bool:
        return key in self._present()

    def keys(self) -> KeysView[str]:
        return self._present().keys()

    def values(self) -> ValuesView[Any]:
        return self._present().values()

    def items(self) -> ItemsView[str, Any]:
        return self._present().items()

    def get(self, key: str, default: Any = None) -> Any:
        return self._present().get(key, default)


class Batch(dict):
    """What tokenizers and image processors return: tensors or lists by name, read as entries or as attributes."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name!r} in this result; it holds {', '.join(self)}") from None

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """Move or convert the tensors in place, with the arguments of `Tensor.to`, and return the same object."""
        self.update({name: value.to(*args, **kwargs) for name, value in self.items() if hasattr(value, "to")})
        return self
