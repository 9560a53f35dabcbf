"""Shell completion, which click makes from the verbs."""

import os
import subprocess
import sys

import pytest

COMMAND = [
    sys.executable,
    "-c",
    "from tamis.cli import main; main(prog_name='tamis')",
]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell(shell):
    environment = {**os.environ, "_TAMIS_COMPLETE": f"{shell}_source"}
    done = subprocess.run(COMMAND, env=environment, capture_output=True, text=True)
    assert "tamis" in done.stdout
    assert "complete" in done.stdout or "compdef" in done.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("tamis re", {"recipes", "report"}),
        ("tamis run --exec", {"--executor"}),
        ("tamis run --executor ", {"local", "sync"}),
    ],
)
def test_verbs_options_and_values_are_completed(words, expected):
    count = len(words.split(" ")) - 1
    environment = {**os.environ, "_TAMIS_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)}
    done = subprocess.run(COMMAND, env=environment, capture_output=True, text=True)
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == expected
