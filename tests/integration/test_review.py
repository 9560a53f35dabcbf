"""Ways in which a run could have been wrong without a word: each was found once, and stays mended."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

import tamis
from tamis.errors import DataError, LockedError, RecipeError
from tamis.pipelines.lock import locked
from tamis.reports.report import build_report

EMBED = {"kind": "embed", "encoder": "lsa", "dim": 16}
SCORE = {"kind": "score", "method": "proxy", "folds": 3}


def recipe_of(small_recipe, *stages, **more):
    return {**small_recipe, "stages": list(stages), **more}


def run(recipe, out, **options):
    return tamis.run(recipe, out, executor="sync", **options)


def test_a_changed_row_count_in_the_scans_is_not_believed(small_recipe, tmp_path):
    recipe = recipe_of(small_recipe, EMBED)
    run(recipe, tmp_path)
    scans = tmp_path / "work" / "scans.json"
    scans.write_bytes(scans.read_bytes().replace(b"700", b"600"))
    assert run(recipe, tmp_path).open_manifest().audit.num_rows == 700


@pytest.mark.parametrize("last", [{"kind": "schedule"}, {"kind": "reweight"}])
@pytest.mark.parametrize(
    "dropping",
    [
        {"kind": "select", "method": "random", "budget": 0.1},
        {"kind": "prune", "method": "loss", "drop_highest": 0.1},
        {"kind": "dedup", "eps": 0.0},
    ],
)
def test_nothing_is_dropped_after_schedule_or_weights(small_recipe, tmp_path, last, dropping):
    with pytest.raises(RecipeError, match=f"put {last['kind']} last"):
        run(recipe_of(small_recipe, EMBED, SCORE, last, dropping), tmp_path)


def test_the_certificate_and_gains_are_those_of_the_last_selection(small_recipe, tmp_path):
    wide = {"kind": "select", "method": "facility_location", "budget": 0.5}
    narrow = {"kind": "select", "method": "facility_location", "budget": 0.1}
    blind = {"kind": "select", "method": "random", "budget": 0.1}
    twice = run(recipe_of(small_recipe, EMBED, wide, narrow), tmp_path / "twice").open_manifest()
    assert twice.record["certificate"]["objective"] == pytest.approx(sum(twice.select["gain"].to_pylist()), abs=1e-5)
    then_random = run(recipe_of(small_recipe, EMBED, wide, blind), tmp_path / "random").open_manifest()
    assert then_random.record["certificate"] is None
    assert then_random.select["gain"].null_count == 70
    then_pruned = recipe_of(small_recipe, EMBED, SCORE, wide, {"kind": "prune", "method": "loss", "drop_highest": 0.1})
    assert run(then_pruned, tmp_path / "pruned").open_manifest().record["certificate"] is None


def test_clusters_end_where_other_embeddings_begin(small_recipe, tmp_path):
    density = {"kind": "prune", "method": "density", "keep": 0.5}
    with pytest.raises(RecipeError, match="put a cluster stage before it"):
        run(recipe_of(small_recipe, EMBED, {"kind": "cluster"}, {**EMBED, "dim": 8}, density), tmp_path)


def test_bad_rows_keep_the_hashes_of_what_they_hold(small_dataset, small_recipe, tmp_path):
    table = pq.read_table(small_dataset).to_pydict()
    table["label"][3] = table["label"][4] = None
    path = tmp_path / "bad.parquet"
    import pyarrow as pa

    pq.write_table(pa.table(table), path)
    dataset = {**small_recipe["dataset"], "path": str(path)}
    recipe = recipe_of(small_recipe, EMBED, dataset=dataset, max_bad_fraction=0.1)
    audit = run(recipe, tmp_path / "run").open_manifest().audit
    assert audit["decision"].to_pylist()[3:5] == [5, 5]
    assert audit["content_hash"][3] != audit["content_hash"][4]


def test_many_damaged_files_are_all_repaired(small_recipe, tmp_path, manifest_bytes):
    recipe = recipe_of(small_recipe, EMBED, {"kind": "dedup", "eps": 0.1})
    run(recipe, tmp_path)
    before = manifest_bytes(tmp_path)
    for path in tmp_path.glob("work/embed.block/*.arrow"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    for path in tmp_path.glob("work/cluster.assign/*.json"):
        path.unlink()
    for path in tmp_path.glob("work/commit.manifest/*.json"):
        path.unlink()
    for path in tmp_path.glob("work/dedup.*/*.json"):
        path.unlink()
    events = []
    run(recipe, tmp_path, on_event=events.append)
    assert sum(event["event"] == "repair" for event in events) >= 4
    assert manifest_bytes(tmp_path) == before


def test_the_report_is_of_the_run_that_committed(small_recipe, tmp_path):
    run(recipe_of(small_recipe, EMBED, SCORE), tmp_path)
    before = build_report(tmp_path)
    with pytest.raises(DataError, match="out-of-fold accuracy"):
        run(recipe_of(small_recipe, EMBED, {**SCORE, "min_accuracy": 0.999}), tmp_path, limit=400)
    assert build_report(tmp_path) == before


def test_a_run_inside_its_own_dataset_is_refused(small_dataset, small_recipe, tmp_path):
    pq.write_table(pq.read_table(small_dataset), tmp_path / "rows.parquet")
    recipe = recipe_of(small_recipe, EMBED, dataset={**small_recipe["dataset"], "path": str(tmp_path)})
    out = tmp_path / "run"
    run(recipe, tmp_path.parent / "elsewhere")
    out.mkdir()
    (out / "left.jsonl").write_text('{"id": "x", "text": "y", "label": "a"}\n')
    with pytest.raises(RecipeError, match="outside of it"):
        run(recipe, out)


def test_looking_at_the_status_stops_no_run(tmp_path):
    from tamis.pipelines.lock import is_locked

    with locked(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(LockedError), locked(tmp_path):
            pass
    assert not is_locked(tmp_path)


def test_plan_names_the_setting_that_changed(small_recipe, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(small_recipe))
    run(recipe, tmp_path / "run")
    command = [sys.executable, "-m", "tamis", "plan", str(recipe), "--out", str(tmp_path / "run"), "--json"]
    for more, expected in ((["--limit", "300"], "limit None -> 300"), (["--set", "seed=6"], "seed 5 -> 6")):
        facts = json.loads(subprocess.run([*command, *more], check=True, capture_output=True).stdout)
        reasons = [stage["why"] for stage in facts["stages"] if stage["to_run"]]
        assert any(expected in reason for reason in reasons), reasons


def test_a_model_whose_files_changed_is_another_model(tmp_path):
    from tamis.embeddings.encoders import model_revision

    (tmp_path / "2_Dense").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "2_Dense" / "model.safetensors").write_bytes(b"dense")
    (tmp_path / "vocab.spm").write_bytes(b"pieces")
    before = model_revision(str(tmp_path))
    for name in ("model.safetensors", "2_Dense/model.safetensors", "vocab.spm"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content + b"!")
        assert model_revision(str(tmp_path)) != before
        (tmp_path / name).write_bytes(content)
    assert model_revision(str(tmp_path)) == before
    (tmp_path / "2_Dense" / "model.safetensors").rename(tmp_path / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(RecipeError, match="can run code"):
        model_revision(str(tmp_path))


@pytest.mark.parametrize("seconds", [1.0, 2.5])
def test_ctrl_c_in_a_terminal_says_one_line(small_recipe, tmp_path, seconds):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**small_recipe, "block_rows": 16}))
    command = [sys.executable, "-m", "tamis", "run", str(recipe), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    time.sleep(seconds)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors, errors.decode()
    assert b"the same command goes on from there" in errors


def test_small_partitions_are_cells_and_not_random_blocks():
    from tamis.selectors.facility_location import merge_rankings, rank_partition, split_into_cells
    from tamis.selectors.selection import as_unit_rows

    rng = np.random.default_rng(0)
    centres = rng.standard_normal((20, 16))
    X = as_unit_rows(centres[rng.integers(20, size=900)] + 0.3 * rng.standard_normal((900, 16)))

    def value(parts):
        rankings = [(part[order], gains) for part in parts for order, gains in [rank_partition(X[part], len(part))]]
        chosen, _ = merge_rankings(rankings, 40)
        return np.maximum(0, (X @ X[chosen].T).max(axis=1)).sum()

    random_parts = np.array_split(rng.permutation(900), 9)
    assert value(split_into_cells(X, max_cell_rows=100)) > value(random_parts)
