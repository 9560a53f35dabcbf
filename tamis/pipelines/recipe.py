"""The recipe: what a person writes in YAML, typed, frozen, and refused where it is wrong.

Only the edge of the program sees these classes; the maths takes arrays and numbers.
Every field carries its description, so that the reference documentation is made from them.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tamis.errors import RecipeError
from tamis.pipelines.strict_yaml import load_recipe_text

_UNITS = ("tokens", "bytes")
_NAME_BYTES, _PATH_BYTES = 255, 2048  # common file systems know no longer ones, and the recipe's folder comes before

Path_ = tuple[str | int, ...]
LineOf = Callable[[Path_], int | None]


def _refuse_foreign(stage: Any, fields: tuple[str, ...]) -> None:
    """Refuse options of another method; one that says the default does no harm, as in a dumped recipe."""
    foreign = [name for name in fields if getattr(stage, name) != type(stage).model_fields[name].default]
    if foreign:
        owner = f"method {stage.method}" if stage.method else "from"
        raise ValueError(f"{', '.join(foreign)} does not belong to {owner}")


def is_amount(value: object) -> object:
    """Accept a fraction (float in (0, 1]) or a count (int >= 1); refuse everything that only looks like one.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not an amount: give a fraction such as 0.25 or a count such as 1000")
    if isinstance(value, float) and not (math.isfinite(value) and 0 < value <= 1):
        raise ValueError(f"{value!r} is not a fraction in (0, 1]; for a count, write a whole number")
    if isinstance(value, int) and value < 1:
        raise ValueError(f"{value!r} is not a count: the least is 1")
    return value


def _is_budget(value: object) -> object:
    """Accept an amount of rows, or a whole number of tokens or of bytes."""
    if not isinstance(value, Mapping):
        return is_amount(value)
    (unit, amount), *others = value.items() or [(None, None)]
    if others or unit not in _UNITS or isinstance(amount, bool) or not isinstance(amount, int) or amount < 1:
        raise ValueError(
            f"{dict(value)!r} is not an amount: give a fraction such as 0.25, a count of rows such as 1000, "
            "{tokens: 1000000} or {bytes: 1000000}"
        )
    return dict(value)


def _are_shares(value: object, info: ValidationInfo) -> object:
    """Accept amounts by the names of groups, where rows are grouped."""
    if value is None:
        return value
    if not isinstance(value, Mapping) or not value or not all(isinstance(name, str | int) for name in value):
        raise ValueError(f"{value!r} is no mapping from names to amounts: write {{NAME: 0.5, OTHER: 0.25}}")
    for name, amount in value.items():
        try:
            is_amount(amount)
        except ValueError as error:
            raise ValueError(f"{name}: {error}; given {dict(value)!r}") from error
    if info.data.get("per") is None:
        raise ValueError(f"{dict(value)!r} are shares of groups; name them: per: label, cluster or source")
    return {str(name): amount for name, amount in value.items()}


def _are_files(value: object) -> object:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) and name for name in value):
        raise ValueError(f"{value!r} is not a list of files: write [eval.parquet]")
    return tuple(value)


def no_address(path: str) -> str:
    """Refuse the address of another machine where a file is named.

    Raises:
        ValueError: It is one. Only its scheme is told: a user name, a token or a signed query may be in the rest.
    """
    before, separator, _ = path.partition("://")
    if separator:
        scheme = before.rpartition(":")[2].strip()
        raise ValueError(f"{scheme}://... is a remote address; files on this machine are read: copy it here first")
    return path


def _is_path(value: str) -> str:
    if len(value.encode()) > _PATH_BYTES or any(len(name.encode()) > _NAME_BYTES for name in value.split("/")):
        raise ValueError(
            f"a path of more than {_PATH_BYTES} bytes, or with a name of more than {_NAME_BYTES} bytes, is that of no "
            f"file; given {value[:40]!r}..."
        )
    return value


Amount = Annotated[int | float, Field(union_mode="left_to_right")]
Budget = Annotated[int | float | dict[str, int], Field(union_mode="left_to_right")]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
PathText = Annotated[str, AfterValidator(_is_path)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DatasetConfig(_Frozen):
    """Where the rows are and which columns mean what."""

    path: PathText = Field(
        description="A file, a glob, a folder of files, or a Hugging Face `save_to_disk` folder: "
        "parquet, JSONL, CSV, Arrow IPC or IDX (columns image, label); or a folder of class folders of image files "
        "(columns image, label, path). A relative path is taken from the recipe's folder."
    )
    id: str | None = Field(
        None, description="Column of the sample id, kept verbatim. Without it the content hash is the id."
    )
    text: str | None = Field(None, description="Column of the text.")
    image: str | None = Field(None, description="Column of images: the bytes of image files.")
    tokens: str | None = Field(None, description="Column of token blocks: lists of whole numbers from 0 on.")
    vectors: str | None = Field(None, description="Column of precomputed vectors (lists of numbers).")
    label: str | None = Field(None, description="Column of the class label.")
    source: str | None = Field(
        None, description="Column that names where a row is from, for `per: source`; without it a file is a source."
    )

    @model_validator(mode="after")
    def _has_content(self) -> DatasetConfig:
        if self.text is None and self.image is None and self.tokens is None and self.vectors is None:
            raise ValueError(
                "name the column that holds the samples: text: COLUMN, image: COLUMN, tokens: COLUMN or vectors: COLUMN"
            )
        return self

    @property
    def fields(self) -> dict[str, str]:
        """The roles that the recipe gives to columns, e.g. `{"id": "tweet_id", "text": "text"}`."""
        roles = {
            "id": self.id,
            "text": self.text,
            "image": self.image,
            "tokens": self.tokens,
            "vectors": self.vectors,
            "label": self.label,
            "source": self.source,
        }
        return {role: column for role, column in roles.items() if column is not None}


class EmbedConfig(_Frozen):
    """Embed every row: one float32 unit vector a row."""

    kind: Literal["embed"] = "embed"
    encoder: PathText = Field(
        "lsa",
        description="lsa (TF-IDF and truncated SVD, needs no weights; of texts, or of token blocks where there are "
        "none) | pixels (PCA of small images, needs no weights) | sentence: PATH or hub name | "
        "transformers: PATH or hub name | vectors (the dataset's vectors column) | "
        "vectors: FILE (npy, arrow, parquet, safetensors)",
    )
    dim: int = Field(256, ge=1, le=4096, description="Dimensions of lsa and pixels; other encoders have their own.")
    max_features: int = Field(50_000, ge=1, description="Vocabulary size of the lsa encoder.")
    fit_rows: int = Field(100_000, ge=1, description="Rows that lsa or pixels is fitted on, evenly spaced.")
    image_size: int = Field(28, ge=1, le=64, description="Width and height that the pixels encoder brings images to.")
    max_tokens: int = Field(128, ge=1, description="Tokens after which a neural encoder cuts a text.")
    batch_size: int = Field(16, ge=1, description="Texts per forward pass (padding makes it affect the last bits).")

    @field_validator("encoder")
    @classmethod
    def _known(cls, value: str) -> str:
        no_address(value)
        name, _, argument = (part.strip() for part in value.partition(":"))
        if name not in ("lsa", "pixels", "sentence", "transformers", "vectors"):
            raise ValueError(
                f"{value!r} is not an encoder; one of lsa, pixels, sentence: PATH, transformers: PATH, vectors, "
                "vectors: FILE"
            )
        if name == "pixels" and argument:
            raise ValueError("pixels has no weights to name; its options are image_size and dim")
        if name in ("sentence", "transformers") and not argument:
            raise ValueError(f"{name} needs a folder or hub name: `encoder: '{name}: PATH'`")
        return f"{name}: {argument}" if argument else name


class DedupConfig(_Frozen):
    """Drop exact duplicates by content, then near duplicates by cosine (SemDeDup, arXiv 2303.09540)."""

    kind: Literal["dedup"] = "dedup"
    eps: float = Field(
        0.05,
        ge=0.0,
        lt=1.0,
        description="Two rows are near duplicates from cosine 1 - eps on. 0: exact duplicates only.",
    )
    floor: float = Field(
        0.9,
        gt=0.0,
        le=1.0,
        description="Pairs from this cosine on are kept, so that another eps is decided without recomputing.",
    )
    which_to_keep: Literal["hard", "easy", "random"] = Field(
        "hard",
        description="Of near duplicates keep the farthest from the centroid (hard), nearest (easy) or any (random).",
    )
    n_clusters: Literal["auto"] | int = Field(
        "auto", description="Clusters in which pairs are sought; auto: one for 1,000 rows."
    )
    fit_rows: int = Field(100_000, ge=1, description="Rows that the clusters are fitted on.")
    probes: int = Field(
        4,
        ge=1,
        le=64,
        description="Clusters in which a row seeks near duplicates: its own and the next nearest; 1, its own, is the "
        "paper's method, which loses pairs that a cluster's border separates.",
    )
    against: tuple[PathText, ...] = Field(
        (),
        strict=False,
        description="Reference sets, such as those to evaluate on: each a path as the dataset's, with the columns of "
        "the dataset's content. Rows that are in one of them, or from cosine 1 - eps on near to one of its rows, leak.",
    )
    against_action: Literal["flag", "drop"] = Field(
        "flag", description="against: what becomes of rows that leak; either way `tamis leaks DIR` lists them."
    )

    @field_validator("n_clusters")
    @classmethod
    def _k(cls, value: str | int) -> str | int:
        return _positive(value)

    _files = field_validator("against", mode="before")(_are_files)

    @field_validator("against")
    @classmethod
    def _here(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(no_address(name) for name in value)

    @model_validator(mode="after")
    def _something_to_act_on(self) -> DedupConfig:
        if self.against_action != "flag" and not self.against:
            raise ValueError("against_action is about rows that leak; name the reference sets: against: [eval.parquet]")
        return self

    @model_validator(mode="after")
    def _floor_below(self) -> DedupConfig:
        if self.eps and 1 - self.eps < self.floor - 1e-12:
            raise ValueError(
                f"eps {self.eps} asks for pairs from cosine {1 - self.eps:g}, below the floor {self.floor}; "
                "lower floor or eps"
            )
        return self


class ClusterConfig(_Frozen):
    """Spherical k-means, fitted on a sample, assigned block by block."""

    kind: Literal["cluster"] = "cluster"
    n_clusters: Literal["auto"] | int = Field(
        "auto", description="Number of clusters; auto: the square root of the number of rows."
    )
    iterations: int = Field(20, ge=1, le=10_000, description="Lloyd iterations.")
    fit_rows: int = Field(100_000, ge=1, description="Rows that the centroids are fitted on.")

    @field_validator("n_clusters")
    @classmethod
    def _k(cls, value: str | int) -> str | int:
        return _positive(value)


class ScoreConfig(_Frozen):
    """A loss for every row: out-of-fold losses of a proxy classifier, or a file of losses by sample id."""

    kind: Literal["score"] = "score"
    method: Literal["proxy"] | None = Field(
        None, description="proxy: multinomial logistic regression on the embeddings, out of fold."
    )
    from_: PathText | None = Field(
        None,
        alias="from",
        description="A table with sample ids and losses (parquet, Arrow, CSV or JSONL), or the folder of a training, "
        "whose ledger it then is.",
    )
    column: str = Field(
        "auto", description="The column of the losses in that table; auto: loss, or last_loss of a training ledger."
    )
    id_column: str = Field("sample_id", description="The column of the sample ids in that table.")
    missing: Literal["refuse", "median"] = Field(
        "refuse",
        description="What a row gets that the table has no loss for; median: that of the losses that there are, so "
        "that a training on a part of the rows can be learned from.",
    )
    folds: int = Field(5, ge=2, le=50, description="Folds of the proxy.")
    fit_rows: int = Field(100_000, ge=1, description="Rows that each fold's proxy is fitted on, evenly spaced.")
    c: float = Field(10.0, gt=0.0, description="Inverse regularisation strength of the proxy (scikit-learn's C).")
    min_accuracy: Literal["majority"] | float = Field(
        "majority",
        description="The proxy's out-of-fold accuracy must exceed this; majority: the share of the largest class.",
    )

    @field_validator("from_")
    @classmethod
    def _here(cls, value: str | None) -> str | None:
        return value and no_address(value)

    @model_validator(mode="after")
    def _one_source(self) -> ScoreConfig:
        if (self.method is None) == (self.from_ is None):
            raise ValueError("give either `method: proxy` or `from: FILE`")
        _refuse_foreign(
            self,
            ("folds", "fit_rows", "c", "min_accuracy") if self.method is None else ("column", "id_column", "missing"),
        )
        return self


class PruneConfig(_Frozen):
    """Drop rows by concept complexity (DBP, arXiv 2401.04578), by loss, or by labels that are likely wrong."""

    kind: Literal["prune"] = "prune"
    method: Literal["density", "loss", "label_noise"] = Field(
        description="density: DBP's quotas per cluster. loss: drop the tails of the losses. label_noise: drop rows "
        "whose label the proxy contradicts confidently; how many that are, the data decide (arXiv 1911.00068)."
    )
    keep: Amount = Field(0.6, description="density: what to keep, a fraction of the stage's input or a count.")
    temperature: float = Field(0.1, gt=0.0, description="density: temperature of the softmax over complexities.")
    neighbours: int = Field(20, ge=1, description="density: nearest other centroids in d_inter.")
    balance: float = Field(
        0.0, ge=0.0, le=1.0, description="density: least quota of a cluster, as a fraction of an equal share."
    )
    which_to_keep: Literal["hard", "easy", "random"] = Field(
        "hard", description="density: farthest from the centroid, nearest, or random."
    )
    drop_highest: Fraction = Field(0.0, description="loss: fraction with the highest losses to drop.")
    drop_lowest: Fraction = Field(0.0, description="loss: fraction with the lowest losses to drop.")

    _amount = field_validator("keep", mode="before")(is_amount)

    @model_validator(mode="after")
    def _fits_method(self) -> PruneConfig:
        density_fields = ("keep", "temperature", "neighbours", "balance", "which_to_keep")
        loss_fields = ("drop_highest", "drop_lowest")
        foreign = {"density": loss_fields, "loss": density_fields, "label_noise": (*density_fields, *loss_fields)}
        _refuse_foreign(self, foreign[self.method])
        if self.method == "loss" and not 0 < self.drop_highest + self.drop_lowest < 1:
            raise ValueError("method loss needs drop_highest and/or drop_lowest, together in (0, 1)")
        return self


class SelectConfig(_Frozen):
    """Select a subset within a budget."""

    kind: Literal["select"] = "select"
    method: Literal[
        "ingenious",
        "facility_location",
        "graph_cut",
        "log_det",
        "k_center",
        "disparity_sum",
        "targeted",
        "conditional",
        "duqgen",
        "random",
        "stratified",
    ] = Field(description="How to select.")
    budget: Budget = Field(
        description="How much: a fraction of the dataset's rows, a count of rows, {tokens: N} or {bytes: N}. Tokens "
        "are those of the tokens column; bytes are those of the text in UTF-8 and of the image file. Rows are then "
        "taken in order (facility_location: by gain per token or byte) while they fit."
    )
    per: Literal["label", "cluster", "source"] | None = Field(
        None,
        description="Share the budget over the classes, the clusters or the sources, in proportion, and select in "
        "each. A source is a file of the dataset, or a value of dataset.source.",
    )
    shares: dict[str, Amount] | None = Field(
        None,
        description="per: what some groups get, by name: a fraction of the budget, or so many of its rows, tokens or "
        "bytes. The other groups share the rest in proportion.",
    )
    engine: Literal["auto", "exact", "sparse", "partitioned"] = Field(
        "auto",
        description="facility_location: greedy on all pairs of a group (exact), on the graph of nearest neighbours "
        "(sparse), or on what ranked cells propose (partitioned). auto: exact within partition_rows, else sparse.",
    )
    stop_gain: float | None = Field(
        None, gt=0.0, description="facility_location: leave out rows whose gain is below this, budget or not."
    )
    random_beyond: float | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="facility_location: choose at most this fraction of the dataset by gain, and draw what else the "
        "budget has at random from the other rows of each group. A large budget covers everything anyway, and what "
        "greedy chooses last is unlike the data.",
    )
    suspects: Literal["alike", "last"] = Field(
        "alike",
        description="facility_location, ingenious, random, stratified: last chooses rows whose label the proxy "
        "contradicts confidently only where their group has too few others; the groups' shares stay what they are.",
    )
    objective: Literal["facility_location"] = Field(
        "facility_location", description="ingenious: the submodular objective of the gains."
    )
    temperature: float = Field(
        1.0, gt=0.0, description="ingenious: of the Taylor-softmax over the gains; duqgen: of the softmax over cosines."
    )
    scale_free: bool = Field(False, description="ingenious: divide the gains by their partition's median first.")
    blocks: Literal["cells", "random"] = Field(
        "cells", description="ingenious: partitions are k-means cells, or random blocks as in the paper."
    )
    partition_rows: Literal["auto"] | int = Field(
        "auto",
        description="Largest group that facility_location ranks exactly, and partition of ingenious. auto: 16,384.",
    )
    trade_off: float = Field(0.5, ge=0.0, description="graph_cut: lambda, how much similarity within the subset costs.")
    ridge: float = Field(1.0, ge=1e-6, le=1e6, description="log_det: what is added to the kernel's diagonal.")
    n_clusters: Literal["auto"] | int = Field("auto", description="duqgen: clusters to draw from.")
    continue_from: PathText | None = Field(
        None,
        description="facility_location, random: an earlier run's folder, or a manifest or version of one. What it kept "
        "is in no stage dropped and counts in the budget; the dataset has its files and may have others.",
    )
    queries: PathText | None = Field(None, description="targeted: a file of vectors that the subset should be near to.")
    eta: float = Field(
        1.0, gt=0.0, le=1e6, description="targeted: how far a row may be represented beyond its own relevance."
    )
    avoid: PathText | None = Field(
        None, description="conditional: a file of vectors that need no representation any more."
    )
    nu: float = Field(1.0, ge=0.0, le=1e6, description="conditional: how strongly to avoid them.")

    _amount = field_validator("budget", mode="before")(_is_budget)
    _shares = field_validator("shares", mode="before")(_are_shares)

    @model_validator(mode="after")
    def _fits_budget(self) -> SelectConfig:
        if isinstance(self.budget, dict) and (self.method == "duqgen" or self.engine == "partitioned"):
            what = "method duqgen" if self.method == "duqgen" else "engine partitioned"
            raise ValueError(f"budget {self.budget}: {what} counts rows; give a fraction or a count, or choose another")
        return self

    @property
    def unit(self) -> str | None:
        """What the budget counts other than rows: tokens or bytes."""
        return next(iter(self.budget)) if isinstance(self.budget, dict) else None

    @model_validator(mode="after")
    def _fits_method(self) -> SelectConfig:
        known = {
            "ingenious": ("objective", "temperature", "scale_free", "blocks", "partition_rows", "suspects"),
            "facility_location": (
                "engine",
                "partition_rows",
                "stop_gain",
                "continue_from",
                "random_beyond",
                "suspects",
            ),
            "random": ("continue_from", "suspects"),
            "stratified": ("suspects",),
            "graph_cut": ("trade_off",),
            "log_det": ("ridge",),
            "targeted": ("queries", "eta"),
            "conditional": ("avoid", "nu"),
            "duqgen": ("n_clusters", "temperature"),
        }
        own = known.get(self.method, ())
        if self.continue_from is not None and self.method == "random" and self.per is not None:
            raise ValueError("continue_from with method random takes no `per`; use facility_location")
        _refuse_foreign(self, tuple(sorted({name for names in known.values() for name in names} - set(own))))
        if self.random_beyond is not None:
            for name in ("unit", "continue_from", "stop_gain", "shares"):
                if getattr(self, name) is not None:
                    given = f"a budget in {self.unit}" if name == "unit" else name
                    raise ValueError(f"random_beyond goes with a budget of rows alone; leave it out, or {given}")
        for method, name in (("targeted", "queries"), ("conditional", "avoid")):
            if self.method == method and getattr(self, name) is None:
                raise ValueError(f"method {method} needs `{name}: FILE`, a file of vectors such as a .npy")
        return self

    @field_validator("queries", "avoid")
    @classmethod
    def _here(cls, value: str | None) -> str | None:
        return value and no_address(value)

    @field_validator("partition_rows", "n_clusters")
    @classmethod
    def _k(cls, value: str | int) -> str | int:
        return _positive(value)


class PickConfig(_Frozen):
    """Keep the rows that a list names, ranked in its order."""

    kind: Literal["pick"] = "pick"
    ids: PathText = Field(
        description="The list: text with one sample id a line, a table with a column of them, or a .npy of DataComp's "
        "uids, which are ids or else content hashes.",
    )
    column: str = Field("auto", description="A table's column of ids; auto: tamis_id or sample_id, or the only one.")
    missing: Literal["refuse", "ignore"] = Field(
        "refuse", description="Whether an id that the dataset lacks is an error, or counted in the facts only."
    )

    _here = field_validator("ids")(no_address)


class ScheduleConfig(_Frozen):
    """Difficulty groups and epoch windows (SeTa, arXiv 2503.13385)."""

    kind: Literal["schedule"] = "schedule"
    method: Literal["seta"] = Field("seta", description="The schedule.")
    epochs: int = Field(12, ge=1, le=10_000, description="Epochs of the training that follows the schedule.")
    num_group: int = Field(10, ge=1, description="Difficulty groups K, by exact one-dimensional k-means of the losses.")
    window_scale: float = Field(0.5, gt=0.0, le=1.0, description="Window width as a share alpha of the groups.")
    prune_ratio: Fraction = Field(0.0, description="Uniform fraction r left out in each epoch.")
    delta: float = Field(
        0.875, gt=0.0, le=1.0, description="Share of the epochs with a window; the rest see all groups."
    )
    rule: Literal["paper", "code"] = Field(
        "paper", description="Window size and first epoch as in the paper or in the authors' code."
    )


class ReweightConfig(_Frozen):
    """Sample weights from losses (arXiv 2502.06733)."""

    kind: Literal["reweight"] = "reweight"
    strategy: Literal["linupper", "upper", "quadratic", "extremes", "uniform"] = Field(
        "linupper", description="Shape of the weights."
    )
    r: float = Field(0.4, gt=0.0, description="Temperature of the softmax; infinity would be the plain mean.")
    clip: bool = Field(False, description="Clip weights at twice the mean, as the theory assumes.")


StageConfig = Annotated[
    EmbedConfig
    | DedupConfig
    | ClusterConfig
    | ScoreConfig
    | PruneConfig
    | SelectConfig
    | PickConfig
    | ScheduleConfig
    | ReweightConfig,
    Field(discriminator="kind"),
]


class TrainSection(_Frozen):
    """What the bundled trainer does with the manifest."""

    model: Literal["text", "image", "lm"] = Field(
        "text", description="The bundled model: a classifier of text or image, or lm, a small GPT on blocks of tokens."
    )
    epochs: int | None = Field(
        None, ge=1, le=10_000, description="Epochs over the subset; default: the schedule's, or 12."
    )
    batch_size: int = Field(128, ge=1, description="Samples per step, of all processes together.")
    lr: float | None = Field(
        None,
        gt=0.0,
        description="Learning rate at first, falling to 0; default: text 0.01, image 0.002, lm 0.001.",
    )
    weight_decay: float = Field(0.01, ge=0.0, description="Weight decay of AdamW.")
    sampler: Literal["seta", "infobatch", "random", "hard", "full", "ingenious"] = Field(
        "seta",
        description="How epochs are drawn: by SeTa's schedule, InfoBatch, at random, highest losses, everything; "
        "ingenious draws another subset every epoch, from the gains of a select stage with method ingenious.",
    )
    prune_ratio: float | None = Field(
        None,
        ge=0.0,
        lt=1.0,
        description="Fraction that the sampler leaves out; default: the schedule's, or its own.",
    )
    ceiling: float = Field(
        0.0,
        ge=0.0,
        lt=1.0,
        description="Fraction of the seen samples, those of the highest losses, that every epoch leaves out: for "
        "data with wrong labels.",
    )
    weights: Literal["linupper", "upper", "quadratic", "extremes", "uniform"] = Field(
        "linupper", description="Loss weights within a batch."
    )
    r: float = Field(0.4, gt=0.0, description="Temperature of the loss weights.")
    clip: bool = Field(False, description="Hold every weight of a batch of m at or below 2/m.")
    warmup_steps: int = Field(0, ge=0, description="Steps at the start that weigh uniformly.")
    token_weights: bool = Field(False, description="Weigh a block by how many tokens it has (lm).")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16 for automatic mixed precision, on a GPU."
    )
    image_size: int | None = Field(
        None, ge=1, le=1024, description="Width and height that images are brought to; default: the size that all have."
    )
    width: int = Field(128, ge=32, multiple_of=32, description="Width of the language model.")
    layers: int = Field(4, ge=1, description="Layers of the language model.")


class Recipe(_Frozen):
    """One run: a dataset, a list of stages, and how to train on the result."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", description="Name of the run and of its manifest.")
    seed: int = Field(0, ge=0, lt=2**63, description="Root of every random draw.")
    dataset: DatasetConfig
    stages: tuple[StageConfig, ...] = Field(description="The stages, in order.", strict=False)
    train: TrainSection = TrainSection()
    numeric: Literal["native", "portable"] = Field(
        "native",
        description="native: libraries take the fastest kernels of the processor, which the record names; processors "
        "with the same ones give the same bytes. portable: libraries are held to those of AVX2 (x86-64-v3), so that "
        "every processor that has them gives the same bytes; slower. Either way workers, threads and kills change "
        "nothing.",
    )
    block_rows: int = Field(4096, ge=16, description="Rows in a block: the unit of work, of resuming and of memory.")
    max_bad_fraction: float = Field(
        0.001, ge=0.0, le=1.0, description="Share of rows that may be quarantined before the run is refused."
    )
    max_text_bytes: int = Field(1_000_000, ge=1, description="A longer text is quarantined.")

    @field_validator("stages", mode="before")
    @classmethod
    def _some(cls, value: object) -> object:
        if isinstance(value, list | tuple) and not value:
            raise ValueError("the list is empty; give at least one stage")
        return value

    @model_validator(mode="after")
    def _one_length(self) -> Recipe:
        planned = self._planned_epochs
        if self.train.epochs is not None and planned is not None and planned != self.train.epochs:
            raise ValueError(f"schedule plans {planned} epochs and train has {self.train.epochs}; give one number")
        return self

    @model_validator(mode="after")
    def _can_draw_again(self) -> Recipe:
        if self.train.sampler == "ingenious":
            methods = [stage.method for stage in self.stages if isinstance(stage, SelectConfig)]
            if not methods or methods[-1] != "ingenious":
                raise ValueError(
                    "train has sampler ingenious, which draws again from the gains of a select stage with method "
                    "ingenious; let the last select stage be one, or choose another sampler"
                )
            if any(isinstance(stage, ReweightConfig) for stage in self.stages):
                raise ValueError(
                    "reweight weighs the rows selected, and those that the sampler ingenious draws later have no "
                    "weight; leave the stage out, or choose another sampler"
                )
        return self

    @model_validator(mode="after")
    def _one_parent(self) -> Recipe:
        if len(self._parents) > 1:
            raise ValueError(f"{len(self._parents)} select stages have continue_from; a run continues one manifest")
        return self

    @property
    def _parents(self) -> list[str]:
        return [stage.continue_from for stage in self.stages if isinstance(stage, SelectConfig) and stage.continue_from]

    @property
    def continue_from(self) -> str | None:
        """The manifest that the run continues, as its select stage names it."""
        return next(iter(self._parents), None)

    @property
    def _planned_epochs(self) -> int | None:
        return next((stage.epochs for stage in self.stages if isinstance(stage, ScheduleConfig)), None)

    @property
    def epochs(self) -> int:
        """Epochs of the training: the train section's, or the schedule's, or 12."""
        return self.train.epochs or self._planned_epochs or 12


def load_recipe(
    source: str | Path | Mapping[str, Any] | Recipe, overrides: tuple[str, ...] = ()
) -> tuple[Recipe, Path]:
    """Read a recipe from a YAML file, a mapping or a Recipe, and apply `stage.key=value` overrides.

    Args:
        source: Path of a YAML file, a mapping of the same shape, or a `Recipe`.
        overrides: Such as `select.budget=0.1`, `prune[1].keep=0.5` (the second prune), `seed=3`.

    Returns:
        The recipe, and the folder from which its relative paths are taken.

    Raises:
        RecipeError: With the file, the line and the path of what is wrong.
    """
    lines: LineOf = _no_lines
    if isinstance(source, Recipe):
        # A stage made in Python need not name its kind, which the dump of set fields then lacks.
        raw: dict[str, Any] = source.model_dump(by_alias=True, exclude_unset=True)
        raw["stages"] = [
            {"kind": stage.kind, **dumped} for stage, dumped in zip(source.stages, raw["stages"], strict=True)
        ]
        origin, folder = "recipe", Path.cwd()
    elif isinstance(source, Mapping):
        raw, origin, folder = dict(source), "recipe", Path.cwd()
    else:
        path = Path(source)
        origin = str(path)
        if path.suffix in _DATA_SUFFIXES:
            raise RecipeError(
                f"{path}: a recipe is a YAML file, and this is data; to write a recipe for it: tamis init"
            )
        try:
            if path.exists() and not path.is_file():
                raise OSError("it is no regular file")
            text = path.read_bytes().decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise RecipeError(f"{path}: cannot read the recipe: {why}") from error
        raw, lines = load_recipe_text(text, origin)
        folder = path.resolve().parent
    for override in overrides:
        raw = _override(raw, override)
    try:
        return Recipe.model_validate(raw), folder
    except ValidationError as error:
        raise RecipeError(_explain(error, raw, origin, lines)) from error


_DATA_SUFFIXES = (".parquet", ".pq", ".jsonl", ".ndjson", ".csv", ".arrow", ".feather", ".ipc", ".gz")


def _no_lines(_: Path_) -> int | None:
    """A recipe that is not a file has no lines."""
    return None


def _positive(value: str | int) -> str | int:
    if isinstance(value, int) and value < 1:
        raise ValueError(f"{value} is out of range: the least is 1")
    return value


def _override(raw: Mapping[str, Any], text: str) -> dict[str, Any]:
    """Apply one `path=value`; the value is read as YAML."""
    target, equals, value_text = text.partition("=")
    keys = target.strip().split(".")
    if not equals or not all(keys):
        raise RecipeError(f"--set {text!r}: write it as stage.key=value, such as select.budget=0.1")
    read = load_recipe_text(f"value: {value_text}", f"--set {text}")[0]
    if len(read) > 1:
        raise RecipeError(f"--set {text!r}: one value is allowed, {len(read)} were given; repeat --set for each")
    stages = raw.get("stages") or ()
    if not isinstance(stages, list | tuple) or not all(isinstance(stage, Mapping) for stage in stages):
        raise RecipeError(f"--set {text!r}: the recipe's stages are not a list of mappings; mend the recipe first")
    changed = {**raw, "stages": [dict(stage) for stage in stages]}
    if len(keys) == 1:
        return {**changed, keys[0]: read["value"]}
    if len(keys) != 2:
        raise RecipeError(f"--set {text!r}: {target!r} is too deep; write stage.key=value")
    head, key = keys
    matched = re.fullmatch(r"([^\[\]]+)(?:\[([0-9]{1,3})\])?", head)
    if matched is None:
        raise RecipeError(f"--set {text!r}: {head!r} is not a stage; write prune, or prune[1] for the second prune")
    kind, index = matched.groups()
    of_kind = [stage for stage in changed["stages"] if stage.get("kind") == kind]
    if of_kind:
        if int(index or 0) >= len(of_kind):
            raise RecipeError(f"--set {text!r}: the recipe has {len(of_kind)} stage(s) of kind {kind}, counted from 0")
        if index is None and len(of_kind) > 1:
            raise RecipeError(
                f"--set {text!r}: {len(of_kind)} stages are of kind {kind}; say which: {kind}[0] to "
                f"{kind}[{len(of_kind) - 1}]"
            )
        of_kind[int(index or 0)][key] = read["value"]
        return changed
    if kind in ("dataset", "train"):
        section = changed.get(kind) or {}
        if not isinstance(section, Mapping):
            raise RecipeError(f"--set {text!r}: the recipe's {kind} is not a mapping; mend the recipe first")
        return {**changed, kind: {**section, key: read["value"]}}
    kinds = sorted({str(stage.get("kind")) for stage in changed["stages"]})
    raise RecipeError(
        f"--set {text!r}: no stage {kind!r} in this recipe; it has {', '.join(kinds)}, and dataset and train"
    )


STAGE_MODELS: dict[str, type[BaseModel]] = {
    model.model_fields["kind"].default: model for model in get_args(get_args(StageConfig)[0])
}


def _explain(error: ValidationError, raw: Mapping[str, Any], origin: str, lines: LineOf) -> str:
    """Turn pydantic's errors into lines of `file:line: path: what is wrong, what is allowed`."""
    messages = []
    for item in error.errors():
        # pydantic puts the union's tag into the location after the stage's index: no part of the file's path.
        location = tuple(
            part
            for i, part in enumerate(item["loc"])
            if not (i == 2 and item["loc"][0] == "stages" and part in STAGE_MODELS)
        )
        # `int | 'auto'` reports each alternative with its own name at the end.
        while (
            location
            and isinstance(location[-1], str)
            and (location[-1].startswith("literal[") or location[-1] in ("int", "float"))
        ):
            location = location[:-1]
        # What is missing has no line of its own: that of the mapping it belongs into says where to look.
        line = next((found for end in range(len(location), 0, -1) if (found := lines(location[:end]))), None)
        where = f"{origin}:{line}" if line else origin
        dotted = ".".join(str(part) for part in location) or "recipe"
        messages.append(f"{where}: {dotted}: {_what(item, location, raw)}")
    return "\n".join(dict.fromkeys(messages))


def _what(item: Any, location: Path_, raw: Mapping[str, Any]) -> str:
    kind, given = item["type"], item.get("input")
    if kind == "extra_forbidden":
        allowed = _allowed_keys(location, raw)
        nearest = difflib.get_close_matches(str(location[-1]), allowed, 1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        return f"unknown key; {hint}allowed: {', '.join(sorted(allowed))}"
    if kind == "missing":
        return "missing; add it"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        given_kind = given.get("kind") if isinstance(given, Mapping) else given
        nearest = difflib.get_close_matches(str(given_kind), list(STAGE_MODELS), 1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        return f"no stage of kind {given_kind!r}; {hint}allowed: {', '.join(STAGE_MODELS)}"
    message = item["msg"].removeprefix("Value error, ")
    return message if kind == "value_error" else f"{message}; given {given!r}"


def _allowed_keys(location: Path_, raw: Mapping[str, Any]) -> list[str]:
    model: type[BaseModel] = Recipe
    if location[0] == "stages" and len(location) > 2:
        model = STAGE_MODELS[raw["stages"][location[1]]["kind"]]
    elif location[0] == "dataset" and len(location) > 1:
        model = DatasetConfig
    elif location[0] == "train" and len(location) > 1:
        model = TrainSection
    return [field.alias or name for name, field in model.model_fields.items()]
