"""The documentation's code and commands run, page by page, and what is generated is up to date."""

import importlib.util
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

import tamis.selectors
import tamis.training
from tamis.advice.candidates import CANDIDATES
from tamis.pipelines.recipe import load_recipe
from tamis.pipelines.reference import reference_recipe

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def blocks(page, *languages):
    """The page's code in these languages, in its order: (language, text)."""
    found = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [(language, text) for language, text in found if language in languages]


def follow(page, folder):
    """Do what a page says, as its reader would."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for language, text in blocks(page, "sh", "python"):
        command = ["bash", "-euc", text] if language == "sh" else [sys.executable, "-c", text]
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{page.name}: {text}\n{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A folder in which the first tutorial was followed."""
    folder = tmp_path_factory.mktemp("docs")
    follow(DOCS / "tutorials" / "batch.md", folder)
    return folder


def test_the_first_tutorial(first):
    assert (first / "runs" / "first" / "report.html").is_file()
    assert (first / "runs" / "first" / "manifest" / "v000002.json").is_file()
    assert (first / "runs" / "first" / "compare.json").is_file()


@pytest.mark.parametrize("page", ["tutorials/export.md", "tutorials/samplers.md", "stages/commit.md"])
def test_pages_that_go_on_from_it(page, first):
    assert blocks(DOCS / page, "python")
    follow(DOCS / page, first)


OTHERS = [page for page in sorted((DOCS / "stages").glob("*.md")) if page.name != "commit.md"]


@pytest.mark.parametrize("page", OTHERS, ids=lambda page: page.stem)
def test_stage_pages(page, tmp_path):
    follow(page, tmp_path)
    (recipe,) = [yaml.safe_load(text) for _, text in blocks(page, "yaml")]
    if isinstance(recipe, list):
        dataset = {"path": "train.parquet", "text": "text", "label": "label"}
        recipe = {"name": "page", "dataset": dataset, "stages": recipe}
    load_recipe(recipe)
    kinds = {stage["kind"] for stage in recipe["stages"]}
    assert page.stem in kinds | {"ingest"}


@pytest.mark.parametrize("page", sorted((DOCS / "recipes").glob("*.md")), ids=lambda page: page.stem)
def test_a_recipes_page_shows_the_shipped_recipe(page):
    ((_, text),) = blocks(page, "yaml")
    shipped = files("tamis.pipelines") / "recipes" / f"{page.stem}.yaml"
    assert yaml.safe_load(text) == yaml.safe_load(shipped.read_text())["stages"]


def test_the_page_on_advice(tmp_path):
    follow(DOCS / "advise.md", tmp_path)
    said = (DOCS / "advise.md").read_text()
    assert all(f"| `{candidate.name}` |" in said for candidate in CANDIDATES)


def test_every_stage_has_a_page():
    stages = {path.stem for path in (DOCS.parent / "tamis" / "pipelines" / "stages").glob("[a-z]*.py")}
    assert stages == {page.stem for page in (DOCS / "stages").glob("*.md")}


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"


def test_what_is_generated_is_up_to_date():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for name, page in generate.PAGES.items():
        written = (generate.FOLDER / name).read_text(encoding="utf-8")
        assert written == page(), f"{name}: run python docs/generate.py"


def test_the_reference_recipe_names_every_choice():
    text = " ".join(line.strip(" #") for line in reference_recipe().splitlines())
    assert "One of seta, infobatch, random, hard, full, ingenious." in text
    assert "One of ingenious, facility_location, graph_cut," in text
    assert "One of flag, drop." in text


def test_the_reference_recipe_is_valid_and_says_the_defaults(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(reference_recipe())
    recipe, _ = load_recipe(path)
    assert [stage.kind for stage in recipe.stages][:2] == ["embed", "dedup"]
    bare = {"name": "example", "dataset": {"path": "train.parquet", "text": "text", "label": "label"}}
    stages = [{"kind": stage.kind} for stage in recipe.stages]
    for stage in stages:
        stage |= {
            "score": {"method": "proxy"},
            "prune": {"method": "density"},
            "select": {"method": "facility_location", "budget": 0.25},
            "pick": {"ids": "ids.txt"},
        }.get(stage["kind"], {})
    assert load_recipe({**bare, "stages": stages})[0] == recipe


def test_the_reference_names_everything_public():
    said = (DOCS / "reference" / "api.md").read_text()
    for module in (tamis, tamis.selectors, tamis.training):
        missing = [name for name in module.__all__ if not re.search(rf"\b{name}\b", said)]
        assert not missing, f"{module.__name__}: {missing}"
