"""Score: a loss for every row, from a proxy classifier out of fold, or from a file by sample id."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tamis.embeddings.kmeans import evenly_spaced
from tamis.errors import DataError, RecipeError
from tamis.manifests.canonical import sha256_file
from tamis.manifests.ledger import RECORD, find_ledger
from tamis.pipelines.dataset import scan_all
from tamis.pipelines.id_lists import ids_twice
from tamis.pipelines.node import Inputs, Output, Task
from tamis.pipelines.sources import take_rows
from tamis.pipelines.state import alive_rows, effect, generator, values, vectors
from tamis.selectors.loss import confidence_thresholds, suspects

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tamis.pipelines.plan import Add, Context, Flow
    from tamis.pipelines.recipe import ScoreConfig


_SCORED_ROWS = 16_384  # rows whose losses are taken at a time


def expand(config: ScoreConfig, flow: Flow, context: Context, add: Add) -> Flow:
    """Add one node a fold and one that joins them, or one that reads the file: column `loss`."""
    if config.from_ is not None:
        path = _table_of_losses(context.folder / config.from_)
        names = ("column", "id_column", "missing")
        params = {"sha256": sha256_file(path), **{name: getattr(config, name) for name in names}}
        joined = add("score.read", params, {"alive": [flow.alive], "index": [flow.index]}, hints={"file": str(path)})
    else:
        flow.need_label("score with method proxy")
        embeddings = flow.need_embeddings("score with method proxy")
        inputs = {"alive": [flow.alive], "index": [flow.index], "embeddings": embeddings}
        folds = [
            add(
                "score.fold",
                {
                    "fold": fold,
                    "folds": config.folds,
                    "c": config.c,
                    "fit_rows": config.fit_rows,
                    "seed": list(context.seed),
                },
                inputs,
                part=fold,
            )
            for fold in range(config.folds)
        ]
        joined = add(
            "score.join",
            {"min_accuracy": config.min_accuracy},
            {"alive": [flow.alive], "index": [flow.index], "folds": folds},
        )
    columns = {name: node for name, node in flow.columns.items() if name != "suspect"} | {"loss": joined}
    if config.from_ is None:
        columns["suspect"] = joined
    return dataclasses.replace(flow, alive=joined, effects=(*flow.effects, joined), columns=columns)


def _table_of_losses(path: Path) -> Path:
    """The table that `from` means: the file itself, or the ledger of a training's folder or of the only one in it."""
    trainings = [path, *(record.parent for record in sorted(path.glob("*/" + RECORD)))]
    trainings = [folder for folder in trainings if (folder / RECORD).is_file()]
    if len(trainings) == 1:
        return find_ledger(trainings[0])
    if not path.is_file():
        found = f"{len(trainings)} trainings at" if trainings else "no file of losses at"
        shown = "".join(f" {folder.name}," for folder in trainings)
        raise RecipeError(f"score: {found} {path}:{shown} give a table, or the folder of one training")
    return path


def fold_of(labels: Any, order: Any, folds: int, rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Deal the rows of each class over the folds, shuffled, so that each fold has each class's share.

    Args:
        labels: int[n].
        order: int64[n], the rank by (content hash, id): the deal does not depend on the rows' places.
        folds: Number of folds.
        rng: For the shuffle.

    Returns:
        int64[n], each row's fold.
    """
    shuffled = np.argsort(order)
    rng.shuffle(shuffled)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    fold = np.empty(len(labels), np.int64)
    fold[by_class] = np.arange(len(labels)) % folds
    return fold


def fold(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Fit multinomial logistic regression on the other folds, and take the losses of this one."""
    from sklearn.linear_model import LogisticRegression

    alive = alive_rows(inputs)
    labels = values(inputs, "index", "label", alive)
    if len(alive) < 2 * params["folds"]:
        raise DataError(
            f"score with {params['folds']} folds needs at least {2 * params['folds']} rows; {len(alive)} are left"
        )
    folds = fold_of(labels, values(inputs, "index", "order", alive), params["folds"], generator(params))
    held, others = np.flatnonzero(folds == params["fold"]), np.flatnonzero(folds != params["fold"])
    others = others[evenly_spaced(len(others), params["fit_rows"])]
    if len(np.unique(labels[others])) < 2:
        raise DataError("score with method proxy needs rows of at least two labels")
    model = LogisticRegression(C=params["c"], max_iter=300, tol=1e-4)
    model.fit(vectors(inputs, alive[others]).astype(np.float64), labels[others])
    column_of = np.full(int(labels.max()) + 1, -1)
    column_of[model.classes_] = np.arange(len(model.classes_))
    own = column_of[labels[held]]
    loss, predicted, floor = np.empty(len(held)), np.empty(len(held), np.int32), 0.0
    parts = [slice(start, start + _SCORED_ROWS) for start in range(0, len(held), _SCORED_ROWS)]
    for part in parts:
        log_probability = model.predict_log_proba(vectors(inputs, alive[held[part]]).astype(np.float64))
        loss[part] = -log_probability[np.arange(len(log_probability)), own[part]]
        predicted[part] = model.classes_[log_probability.argmax(axis=1)]
        floor = min(floor, float(log_probability.min()))
    # A class that the proxy never saw gets the loss of the least likely outcome seen, and nothing speaks against it.
    known = own >= 0
    loss[~known] = -floor
    thresholds = confidence_thresholds(own[known], np.exp(-loss[known]), len(model.classes_))
    suspect = np.zeros(len(held), np.bool_)
    for part in parts:  # once more, so that the probabilities of all classes need not be held
        probability = model.predict_proba(vectors(inputs, alive[held[part]]).astype(np.float64))
        suspect[part] = known[part] & suspects(own[part], probability, thresholds)
    table = pa.table(
        {
            "row": pa.array(alive[held], pa.int64()),
            "loss": pa.array(np.maximum(loss, 0), pa.float64()),
            "predicted": pa.array(predicted, pa.int32()),
            "suspect": pa.array(suspect),
        }
    )
    return Output(table, {"iterations": int(np.max(model.n_iter_))})


def join(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Put the folds together, and refuse a proxy that knows nothing."""
    alive = alive_rows(inputs)
    folds = pa.concat_tables([inputs.open(item) for item in inputs.all("folds")]).sort_by("row")
    labels = values(inputs, "index", "label", alive)
    accuracy = float(np.mean(folds["predicted"].to_numpy() == labels))
    majority = float(np.bincount(labels).max() / len(labels))
    least = majority if params["min_accuracy"] == "majority" else params["min_accuracy"]
    meaning = "the share of the largest class" if params["min_accuracy"] == "majority" else "min_accuracy"
    if not accuracy > least:
        raise DataError(
            f"the proxy's out-of-fold accuracy is {accuracy:.4f}, not above {least:.4f} "
            f"({meaning}): its losses say nothing. "
            "Use a better encoder, check the labels, or set score.min_accuracy lower"
        )
    loss = folds["loss"].combine_chunks()
    suspect = folds["suspect"].combine_chunks()
    facts = {
        "out_of_fold_accuracy": round(accuracy, 6),
        "majority_share": round(majority, 6),
        "mean_loss": round(pc.mean(loss).as_py(), 6),
        "suspects": pc.sum(suspect).as_py() or 0,
    }
    return Output(effect(alive, loss=loss, suspect=suspect), facts)


def read(params: Mapping[str, Any], inputs: Inputs) -> Output:
    """Join a file of losses to the rows by sample id."""
    alive = alive_rows(inputs)
    path = inputs.hints["file"]
    files = scan_all(path)
    column = params["column"]
    if column == "auto":
        column = "loss" if "loss" in files[0].columns or "last_loss" not in files[0].columns else "last_loss"
    table = take_rows(files, np.arange(files[0].rows), [params["id_column"], column])
    given = table[params["id_column"]].cast(pa.string())
    twice = ids_twice(given)
    if twice:
        raise DataError(
            f"{path}: column {params['id_column']!r} holds {len(twice)} ids more than once: "
            f"{', '.join(twice[:10])}; one loss a sample is needed"
        )
    index = inputs.table("index")
    ids = index["sample_id"].take(pa.array(alive)).cast(pa.string())
    at = pc.index_in(ids, given.combine_chunks())
    try:
        loss = table[column].take(at).combine_chunks().cast(pa.float64())
    except pa.ArrowException as error:
        raise DataError(
            f"{path}: column {column!r} holds no numbers: {error}; name the column of the losses with score.column"
        ) from error
    missing = loss.is_null()
    lacking = int(pc.sum(missing).as_py() or 0)
    if lacking and params["missing"] == "refuse":
        shown = ", ".join(ids.filter(missing).to_pylist()[:10])
        raise DataError(
            f"{path} has no loss for {lacking} of {len(alive)} rows: {shown}; give one for each, or set "
            "score.missing: median"
        )
    if lacking == len(alive) > 0:
        raise DataError(f"{path} has no loss for any of the {len(alive)} rows; is it of the same dataset?")
    numbers = loss.to_numpy(zero_copy_only=False)
    known = ~missing.to_numpy(zero_copy_only=False)
    bad = np.flatnonzero(known & ~np.isfinite(numbers))
    if len(bad):
        shown = ", ".join(ids[int(i)].as_py() for i in bad[:10])
        raise DataError(f"{path}: {len(bad)} losses are NaN or infinite: {shown}")
    if lacking:
        numbers = np.where(known, numbers, np.median(numbers[known]))
    facts = {"mean_loss": round(float(numbers.mean()), 6) if len(numbers) else 0.0, "without_loss": lacking}
    return Output(effect(alive, loss=pa.array(numbers, pa.float64())), facts)


TASKS = {
    "fold": Task(fold, version=3, libraries=("sklearn.linear_model",), packages=("scikit-learn", "scipy")),
    "join": Task(join, version=2),
    "read": Task(read, version=2),
}
