"""Each family's tests run over its own tables."""

from __future__ import annotations

import pytest

from ...helpers.trajectories import TrajectoryParity


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    family = metafunc.cls
    if family is None or not issubclass(family, TrajectoryParity):
        return
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", family.cases())
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", family.tables)
