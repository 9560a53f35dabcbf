"""What one waits for where there is nothing to do: heavy libraries are not imported."""

import json
import subprocess
import sys

import tamis

HEAVY = ["torch", "faiss", "distributed", "numba", "sklearn", "transformers"]

COMMAND = f"""
import sys
from tamis.cli import main
try:
    main(sys.argv[1:])
finally:
    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


def imported(*arguments):
    done = subprocess.run([sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.splitlines()[-1]


def test_the_help_imports_nothing_heavy():
    said, libraries = imported("--help")
    assert "Usage" in said
    assert libraries == "[]"


def test_a_cached_run_imports_nothing_heavy_and_a_fresh_one_does(small_recipe, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(small_recipe))
    command = ("run", str(recipe), "--out", str(tmp_path / "run"), "--executor", "sync", "--json")
    said, libraries = imported(*command)
    assert "faiss" in libraries
    said, libraries = imported(*command)
    assert json.loads(said)["tasks_run"] == 0
    assert libraries == "[]"
    assert tamis.run(recipe, tmp_path / "run").ran == ()
