import pytest

from tamis.errors import RecipeError
from tamis.pipelines.recipe import (
    ClusterConfig,
    DatasetConfig,
    DedupConfig,
    EmbedConfig,
    PruneConfig,
    Recipe,
    ReweightConfig,
    ScheduleConfig,
    ScoreConfig,
    SelectConfig,
    load_recipe,
)

GOOD = """\
name: first
seed: 17
dataset: {path: rows.parquet, id: id, text: text, label: label}
stages:
  - {kind: embed, encoder: lsa}
  - {kind: dedup, eps: 0.05}
  - kind: prune
    method: loss
    drop_highest: 0.1
  - {kind: prune, method: density, keep: 0.6}
  - kind: select
    method: facility_location
    budget: 0.25
"""


def written(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


def refusal(source, overrides=()):
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def stage_refusal(stage, **dataset):
    fields = {"path": "d.parquet", "text": "text", **dataset}
    return refusal({"name": "x", "dataset": fields, "stages": [stage]})


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl", "rows.csv.gz"])
def test_a_dataset_in_place_of_a_recipe(tmp_path, name):
    (tmp_path / name).write_bytes(b"PAR1")
    assert refusal(tmp_path / name).endswith("this is data; to write a recipe for it: tamis init")


def test_a_recipe_that_is_not_there(tmp_path):
    assert refusal(tmp_path / "r.yaml").endswith("r.yaml: cannot read the recipe: No such file or directory")


def test_a_good_recipe_loads_with_its_folder(tmp_path):
    recipe, folder = load_recipe(written(tmp_path, GOOD))
    assert folder == tmp_path
    assert [stage.kind for stage in recipe.stages] == ["embed", "dedup", "prune", "prune", "select"]
    assert recipe.dataset.fields == {"id": "id", "text": "text", "label": "label"}
    assert (recipe.stages[1].eps, recipe.stages[4].budget, recipe.seed) == (0.05, 0.25, 17)


# --- unknown and missing ---


@pytest.mark.parametrize(
    ("old", "new", "line", "parts"),
    [
        ("budget: 0.25", "budgte: 0.25", 13, ["stages.4.budgte", "did you mean 'budget'?", "temperature"]),
        ("seed: 17", "sede: 17", 2, ["sede", "did you mean 'seed'?"]),
        ("label: label", "labels: label", 3, ["dataset.labels", "did you mean 'label'?", "vectors"]),
        ("drop_highest: 0.1", "drop_higest: 0.1", 9, ["stages.2.drop_higest", "did you mean 'drop_highest'?"]),
        ("eps: 0.05", "qqqq: 0.05", 6, ["stages.1.qqqq", "unknown key; allowed: ", "eps"]),
    ],
)
def test_unknown_keys_name_the_line_and_the_nearest(tmp_path, old, new, line, parts):
    message = refusal(written(tmp_path, GOOD.replace(old, new)))
    assert any(item.startswith(f"{tmp_path / 'r.yaml'}:{line}: ") for item in message.split("\n"))
    for part in ["unknown key", *parts]:
        assert part in message


def test_an_unknown_key_of_train_names_the_nearest(tmp_path):
    message = refusal(written(tmp_path, GOOD + "train:\n  epoch: 3\n"))
    assert ":15: train.epoch: unknown key; did you mean 'epochs'?" in message


def test_an_unknown_kind_names_the_nearest_and_all(tmp_path):
    message = refusal(written(tmp_path, GOOD.replace("kind: dedup", "kind: dedupe")))
    assert "r.yaml:6: stages.1: no stage of kind 'dedupe'; did you mean 'dedup'? allowed: embed, dedup," in message


def test_a_stage_without_a_kind(tmp_path):
    message = refusal(written(tmp_path, GOOD.replace("kind: embed, ", "")))
    assert "r.yaml:5: stages.0: no stage of kind None" in message


def test_duplicate_keys_name_both_lines(tmp_path):
    message = refusal(written(tmp_path, GOOD.replace("drop_highest: 0.1", "method: density")))
    assert "r.yaml:9: the key 'method' is there twice, first on line 8" in message


@pytest.mark.parametrize(
    ("cut", "where"),
    [
        ("name: first\n", "name: missing"),
        ("    budget: 0.25\n", "r.yaml:11: stages.4.budget: missing; add it"),
        ("    method: facility_location\n", "r.yaml:11: stages.4.method: missing; add it"),
        ("path: rows.parquet, ", "r.yaml:3: dataset.path: missing; add it"),
    ],
)
def test_a_missing_field_names_where_it_belongs(tmp_path, cut, where):
    assert cut in GOOD
    assert where in refusal(written(tmp_path, GOOD.replace(cut, "")))


def test_all_mistakes_are_told_at_once(tmp_path):
    text = GOOD.replace("eps: 0.05", "eps: 2").replace("budget: 0.25", "budget: 0")
    message = refusal(written(tmp_path, text))
    assert len(message.split("\n")) == 2
    assert ":6: stages.1.eps: " in message
    assert ":13: stages.4.budget: " in message


def test_a_recipe_that_is_no_file(tmp_path):
    assert "cannot read the recipe" in refusal(tmp_path / "none.yaml")
    assert "cannot read the recipe" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"stages": []}, "stages: "),
        ({"stages": "embed"}, "stages: "),
        ({"stages": ["embed"]}, "stages.0: "),
        ({"dataset": {"path": "d.parquet"}}, "name the column that holds the samples"),
        ({"dataset": None}, "dataset: "),
        ({"name": "../up"}, "name: "),
        ({"name": ""}, "name: "),
        ({"seed": -1}, "seed: "),
        ({"seed": 2**63}, "seed: "),
        ({"seed": True}, "seed: "),
        ({"seed": 1.0}, "seed: "),
        ({"block_rows": 15}, "block_rows: "),
        ({"max_bad_fraction": 1.5}, "max_bad_fraction: "),
        ({"max_bad_fraction": float("nan")}, "max_bad_fraction: "),
        ({"max_text_bytes": 0}, "max_text_bytes: "),
        ({"train": {"sampler": "best"}}, "train.sampler: "),
    ],
)
def test_wrong_values_outside_the_stages(change, part):
    raw = {"name": "x", "dataset": {"path": "d", "text": "t"}, "stages": [{"kind": "embed"}]} | change
    assert part in refusal(raw)


# --- wrong values of stages ---


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("25 %", "'25 %' is not an amount: give a fraction such as 0.25 or a count such as 1000"),
        ("0.25", "'0.25' is not an amount"),
        (True, "True is not an amount"),
        (None, "None is not an amount"),
        ([1], "[1] is not an amount"),
        (0, "0 is not a count: the least is 1"),
        (-3, "-3 is not a count"),
        (1.5, "1.5 is not a fraction in (0, 1]; for a count, write a whole number"),
        (0.0, "0.0 is not a fraction"),
        (-0.1, "-0.1 is not a fraction"),
        (float("nan"), "nan is not a fraction"),
        (float("inf"), "inf is not a fraction"),
    ],
)
@pytest.mark.parametrize(
    "stage",
    [
        {"kind": "select", "method": "random", "budget": ...},
        {"kind": "prune", "method": "density", "keep": ...},
    ],
)
def test_what_is_no_amount(stage, value, part):
    key = "budget" if "budget" in stage else "keep"
    message = stage_refusal({**stage, key: value})
    assert f"recipe: stages.0.{key}: {part}" in message


@pytest.mark.parametrize("text", ["25 %", "true", "0", "1.5", "-3", ".nan", "1_000", "1e999", ""])
def test_what_is_no_amount_in_a_file(tmp_path, text):
    message = refusal(written(tmp_path, GOOD.replace("budget: 0.25", f"budget: {text}")))
    assert message.startswith(f"{tmp_path / 'r.yaml'}:13: stages.4.budget: ")


@pytest.mark.parametrize("value", [1, 1000, 0.25, 1.0, 1e-9])
def test_amounts(value):
    recipe, _ = load_recipe(
        {
            "name": "x",
            "dataset": {"path": "d", "text": "t"},
            "stages": [{"kind": "select", "method": "random", "budget": value}],
        }
    )
    assert recipe.stages[0].budget == value
    assert type(recipe.stages[0].budget) is type(value)


@pytest.mark.parametrize(
    ("stage", "parts"),
    [
        ({"kind": "embed", "encoder": "word2vec"}, ["stages.0.encoder", "'word2vec' is not an encoder", "lsa"]),
        ({"kind": "embed", "encoder": "sentence"}, ["sentence needs a folder or hub name"]),
        ({"kind": "embed", "encoder": 3}, ["stages.0.encoder", "given 3"]),
        ({"kind": "embed", "dim": 0}, ["stages.0.dim", "greater than or equal to 1", "given 0"]),
        ({"kind": "embed", "dim": "16"}, ["stages.0.dim", "given '16'"]),
        ({"kind": "embed", "dim": True}, ["stages.0.dim", "given True"]),
        ({"kind": "dedup", "eps": 0.2}, ["below the floor 0.9", "lower floor or eps"]),
        ({"kind": "dedup", "eps": 1.0}, ["stages.0.eps", "less than 1"]),
        ({"kind": "dedup", "eps": -0.1}, ["stages.0.eps"]),
        ({"kind": "dedup", "eps": float("nan")}, ["stages.0.eps"]),
        ({"kind": "dedup", "n_clusters": 0}, ["stages.0.n_clusters", "0 is out of range: the least is 1"]),
        ({"kind": "dedup", "n_clusters": "many"}, ["stages.0.n_clusters", "given 'many'"]),
        ({"kind": "dedup", "which_to_keep": "best"}, ["stages.0.which_to_keep", "'hard'"]),
        ({"kind": "cluster", "n_clusters": 0}, ["stages.0.n_clusters", "the least is 1"]),
        ({"kind": "cluster", "n_clusters": -2}, ["the least is 1"]),
        ({"kind": "cluster", "n_clusters": 2.5}, ["stages.0.n_clusters", "given 2.5"]),
        ({"kind": "cluster", "n_clusters": True}, ["stages.0.n_clusters", "given True"]),
        ({"kind": "cluster", "iterations": 0}, ["stages.0.iterations"]),
        ({"kind": "score"}, ["give either `method: proxy` or `from: FILE`"]),
        ({"kind": "score", "method": "proxy", "from": "x.csv"}, ["give either"]),
        ({"kind": "score", "method": "proxy", "folds": 1}, ["stages.0.folds"]),
        ({"kind": "score", "method": "proxy", "min_accuracy": "best"}, ["stages.0.min_accuracy"]),
        ({"kind": "prune", "method": "loss"}, ["method loss needs drop_highest and/or drop_lowest"]),
        ({"kind": "prune", "method": "loss", "drop_highest": 0.6, "drop_lowest": 0.5}, ["together in (0, 1)"]),
        (
            {"kind": "prune", "method": "loss", "drop_highest": 0.1, "keep": 0.5},
            ["keep does not belong to method loss"],
        ),
        ({"kind": "prune", "method": "density", "drop_lowest": 0.1}, ["drop_lowest does not belong to method density"]),
        ({"kind": "prune", "method": "density", "temperature": 0.0}, ["stages.0.temperature", "greater than 0"]),
        ({"kind": "prune", "method": "density", "balance": 1.5}, ["stages.0.balance"]),
        ({"kind": "prune", "method": "size"}, ["stages.0.method", "'density', 'loss' or 'label_noise'"]),
        (
            {"kind": "select", "method": "facility_location", "budget": 1, "temperature": 2.0},
            ["temperature does not belong to method facility_location"],
        ),
        (
            {"kind": "select", "method": "random", "budget": 1, "partition_rows": 64},
            ["partition_rows does not belong to method random"],
        ),
        ({"kind": "select", "method": "best", "budget": 1}, ["stages.0.method", "given 'best'"]),
        ({"kind": "select", "method": "random", "budget": 1, "per": "user"}, ["stages.0.per", "'label'"]),
        ({"kind": "select", "method": "targeted", "budget": 1}, ["method targeted needs `queries: FILE`"]),
        ({"kind": "select", "method": "k_center", "budget": 1, "ridge": 2.0}, ["ridge does not belong to"]),
        ({"kind": "select", "method": "ingenious", "budget": 1, "partition_rows": 0}, ["the least is 1"]),
        ({"kind": "schedule", "window_scale": 1.5}, ["stages.0.window_scale"]),
        ({"kind": "schedule", "prune_ratio": 1.0}, ["stages.0.prune_ratio"]),
        ({"kind": "schedule", "num_group": 0}, ["stages.0.num_group"]),
        ({"kind": "reweight", "r": 0.0}, ["stages.0.r"]),
        ({"kind": "reweight", "r": float("inf")}, ["stages.0.r"]),
        ({"kind": "reweight", "clip": "yes"}, ["stages.0.clip", "given 'yes'"]),
    ],
)
def test_wrong_values_of_stages(stage, parts):
    message = stage_refusal(stage)
    for part in ["recipe: stages.0", *parts]:
        assert part in message
    assert "pydantic" not in message


def test_eps_may_reach_the_floor_exactly():
    raw = {"kind": "dedup", "eps": 0.1, "floor": 0.9}
    recipe, _ = load_recipe({"name": "x", "dataset": {"path": "d", "text": "t"}, "stages": [raw]})
    assert recipe.stages[0].eps == 0.1


# --- overrides ---


def test_set_changes_what_it_names(tmp_path):
    path = written(tmp_path, GOOD)
    overrides = (
        "select.budget=100",
        "prune[1].keep=0.5",
        "prune[0].drop_highest=2e-1",
        "seed=3",
        "dataset.label=klass",
        "train.epochs=2",
    )
    recipe, _ = load_recipe(path, overrides)
    assert recipe.stages[4].budget == 100
    assert (recipe.stages[2].drop_highest, recipe.stages[3].keep) == (0.2, 0.5)
    assert (recipe.seed, recipe.dataset.label, recipe.train.epochs) == (3, "klass", 2)
    # What is left untouched is as in the file, and the file is read anew each time.
    assert load_recipe(path)[0].stages[4].budget == 0.25


def test_a_colon_in_a_set_value_must_be_quoted_like_in_yaml(tmp_path):
    path = written(tmp_path, GOOD)
    assert "not valid YAML" in refusal(path, ("embed.encoder=vectors: v.npy",))
    assert load_recipe(path, ("embed.encoder='vectors: v.npy'",))[0].stages[0].encoder == "vectors: v.npy"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("select.budget", ["write it as stage.key=value"]),
        ("=3", ["write it as stage.key=value"]),
        ("select.=3", ["write it as stage.key=value"]),
        (".budget=3", ["write it as stage.key=value"]),
        ("select.a.b=3", ["too deep"]),
        (
            "cluster.n_clusters=3",
            ["no stage 'cluster' in this recipe; it has dedup, embed, prune, select, and dataset"],
        ),
        ("prune.keep=0.5", ["2 stages are of kind prune; say which: prune[0] to prune[1]"]),
        ("prune[2].keep=0.5", ["the recipe has 2 stage(s) of kind prune, counted from 0"]),
        ("prune[-1].keep=0.5", ["'prune[-1]' is not a stage", "prune[1]"]),
        ("prune[x].keep=0.5", ["'prune[x]' is not a stage"]),
        ("prune[1.keep=0.5", ["'prune[1'"]),
        ("prune].keep=0.5", ["'prune]' is not a stage"]),
        ("select.budgte=1", ["stages.4.budgte: unknown key; did you mean 'budget'?"]),
        ("select.budget=25 %", ["stages.4.budget: '25 %' is not an amount"]),
        ("select.budget=", ["stages.4.budget: None is not an amount"]),
        ("select.budget=[1", ["--set select.budget=[1:1: not valid YAML"]),
        ("select.budget=*x", ["alias"]),
        ("sede=3", ["sede: unknown key; did you mean 'seed'?"]),
        ("prune[0].keep=0.5", ["keep does not belong to method loss"]),
    ],
)
def test_set_that_is_wrong(tmp_path, text, parts):
    message = refusal(written(tmp_path, GOOD), (text,))
    for part in parts:
        assert part in message


@pytest.mark.parametrize("stages", ["embed", ["embed"], 3, [None]])
def test_set_on_stages_that_are_no_stages(stages):
    raw = {"name": "x", "dataset": {"path": "d", "text": "t"}, "stages": stages}
    assert "the recipe's stages are not a list of mappings" in refusal(raw, ("select.budget=1",))


@pytest.mark.parametrize("section", ["rows.parquet", [1], 3])
def test_set_on_a_section_that_is_none(section):
    raw = {"name": "x", "dataset": section, "stages": [{"kind": "embed"}]}
    assert "the recipe's dataset is not a mapping" in refusal(raw, ("dataset.id=id",))
    assert "dataset: " in refusal(raw)


def test_set_does_not_change_the_mapping_it_was_given():
    raw = {"name": "x", "dataset": {"path": "d", "text": "t"}, "stages": [{"kind": "embed", "dim": 8}]}
    recipe, _ = load_recipe(raw, ("embed.dim=16", "dataset.text=body"))
    assert (recipe.stages[0].dim, recipe.dataset.text) == (16, "body")
    assert raw["stages"] == [{"kind": "embed", "dim": 8}]
    assert raw["dataset"]["text"] == "t"


# --- round trips ---


def every_stage():
    return Recipe(
        name="all",
        dataset=DatasetConfig(path="d.parquet", id="id", text="text", label="label"),
        stages=(
            EmbedConfig(dim=16),
            DedupConfig(eps=0.02),
            ClusterConfig(),
            ScoreConfig(method="proxy"),
            ScoreConfig(**{"from": "losses.csv", "column": "l"}),
            PruneConfig(method="loss", drop_highest=0.1),
            PruneConfig(method="density", keep=0.5),
            SelectConfig(method="random", budget=0.5),
            ScheduleConfig(),
            ReweightConfig(r=0.5),
        ),
    )


def test_a_recipe_object_is_taken_as_it_is():
    recipe = every_stage()
    assert load_recipe(recipe)[0] == recipe
    assert load_recipe(load_recipe(recipe)[0])[0] == recipe


def test_a_recipe_object_can_be_overridden():
    changed, _ = load_recipe(every_stage(), ("select.budget=3", "prune[1].keep=0.25"))
    assert (changed.stages[7].budget, changed.stages[6].keep) == (3, 0.25)
    assert changed.stages[4].from_ == "losses.csv"


def test_a_recipe_survives_the_trip_through_a_dict(tmp_path):
    recipe, _ = load_recipe(written(tmp_path, GOOD))
    assert load_recipe(recipe.model_dump(by_alias=True, exclude_unset=True))[0] == recipe


def test_a_recipe_object_made_without_checks_is_checked():
    recipe = every_stage().model_copy(update={"seed": -3})
    assert "seed" in refusal(recipe)


def test_a_recipe_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        every_stage().seed = 3


def test_a_dumped_recipe_loads_again():
    from tamis.pipelines.recipe import load_recipe

    given = {
        "name": "x",
        "dataset": {"path": "a.parquet", "text": "t", "label": "l"},
        "stages": [
            {"kind": "embed"},
            {"kind": "score", "method": "proxy"},
            {"kind": "prune", "method": "loss", "drop_highest": 0.1},
            {"kind": "select", "method": "random", "budget": 5},
        ],
    }
    recipe, _ = load_recipe(given)
    again, _ = load_recipe(recipe.model_dump(by_alias=True, mode="json"))
    assert again == recipe
