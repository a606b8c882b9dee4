"""The command as a whole: what it costs to start, and how it fails."""

from __future__ import annotations

import subprocess
import sys

import pytest

import safelight
from safelight.cli import main as cli


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "safelight", *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", [["--help"], ["generate", "--help"], ["inspect", "--help"], ["--version"]])
def test_help_needs_no_torch(words):
    code = (
        "import sys, safelight.cli.main as cli\n"
        f"try: cli.main({words})\n"
        "except SystemExit as stop: status = stop.code\n"
        "print(status, {'torch', 'numpy', 'PIL', 'huggingface_hub'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "0 set()"


def test_module_and_version():
    result = run("--version")
    assert (result.returncode, result.stdout) == (0, f"safelight {safelight.__version__}\n")


def test_help_names_every_command():
    shown = run("--help").stdout
    assert all(command in shown for command in ("generate", "inspect", "train"))
    assert "unconditional" in run("train", "--help").stdout


def test_no_command_is_an_error_of_usage():
    result = run()
    assert result.returncode == 2
    assert "usage: safelight" in result.stderr


def test_an_error_is_one_line(tmp_path):
    missing = tmp_path / "none.png"
    result = run("generate", "--from", str(missing))
    assert result.returncode == 2
    assert result.stderr == f"safelight: error: there is no file {str(missing)!r}\n"
    assert result.stdout == ""
    debug = run("generate", "--debug", "--from", str(missing))
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr
    assert "RepositoryError" in debug.stderr


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (safelight.NonFiniteError("the picture\n  holds NaN"), 2, "safelight: error: the picture holds NaN\n"),
        (PermissionError(13, "Permission denied", "x.png"), 2, "Permission denied: 'x.png'"),
    ],
)
def test_exit_status(monkeypatch, capsys, raised, status, said):
    def fail(args):
        raise raised

    monkeypatch.setattr("safelight.cli.inspect.run", fail)
    assert cli.main(["inspect", "anything"]) == status
    assert said in capsys.readouterr().err
