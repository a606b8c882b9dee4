"""Verbosity and progress bars, as scripts set them."""

from __future__ import annotations

import logging as python_logging

import pytest

from safelight.utils import logging


@pytest.fixture(autouse=True)
def as_found():
    root = logging.get_logger()
    level, shown = root.level, logging.is_progress_bar_enabled()
    yield
    logging.disable_default_handler()
    logging.reset_format()
    root.setLevel(level)
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()


@pytest.fixture
def heard():
    """The messages that get through."""
    messages: list[str] = []

    class Ear(python_logging.Handler):
        def emit(self, record: python_logging.LogRecord) -> None:
            messages.append(self.format(record))

    ear = Ear()
    logging.add_handler(ear)
    yield messages
    logging.remove_handler(ear)


@pytest.mark.parametrize(
    ("setter", "level"),
    [
        (logging.set_verbosity_debug, logging.DEBUG),
        (logging.set_verbosity_info, logging.INFO),
        (logging.set_verbosity_warning, logging.WARNING),
        (logging.set_verbosity_error, logging.ERROR),
    ],
)
def test_verbosity_lets_through_what_it_says(setter, level, heard):
    setter()
    assert logging.get_verbosity() == level
    ours = logging.get_logger("safelight.models.base")
    for one in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        ours.log(one, "level %d", one)
    assert heard == [f"level {one}" for one in (10, 20, 30, 40) if one >= level]


def test_our_own_handler_says_nothing_twice(caplog):
    logging.set_verbosity_info()
    logging.get_logger("safelight.x").warning("once")
    assert "once" not in caplog.text, "the application's root logger would say it again"
    logging.disable_default_handler()
    logging.get_logger("safelight.x").warning("to the application")
    assert "to the application" in caplog.text


def test_explicit_format(heard):
    logging.enable_explicit_format()
    logging.get_logger("safelight.x").error("where am I")
    assert heard[-1].startswith("[ERROR|test_logging.py:")
    logging.reset_format()
    logging.get_logger("safelight.x").error("plain")
    assert heard[-1] == "plain"


def test_progress_bars_can_be_switched_off():
    logging.disable_progress_bar()
    assert not logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    assert logging.is_progress_bar_enabled()
