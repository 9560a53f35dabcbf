"""The verb that compares subsets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tamis.cli.common import JSON, errors, print_facts, visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SHOWN = 4  # groups of each kind of share; --json has all


@click.command()
@click.argument("folders", metavar="A B [C ...]", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--rows",
    "examples",
    type=click.IntRange(0),
    default=0,
    metavar="N",
    help="List N of the rows that went or came in each group.",
)
@JSON
@errors
def diff(folders: tuple[Path, ...], examples: int, as_json: bool) -> None:
    """Compare subsets: which rows they share, why the others went or came, how shares, coverage and weights shift.

    A, B, ... are run folders, manifest folders or versions such as runs/first/manifest/v000001.json. Of more than two,
    such as those of several seeds, it shows how stable they are.

    Example: tamis diff runs/first runs/second --rows 3
    """
    from tamis.manifests.diff import stability
    from tamis.manifests.reader import open_manifest
    from tamis.reports.diff import compare, describe

    if len(folders) < 2:
        raise click.UsageError("give at least two subsets to compare")
    if examples and len(folders) > 2:
        raise click.UsageError(f"--rows lists rows of two subsets; {len(folders)} were given")
    manifests = [open_manifest(folder) for folder in folders]
    subsets = [describe(folder, manifest) for folder, manifest in zip(folders, manifests, strict=True)]
    if len(manifests) > 2:
        print_facts({"subsets": subsets, **stability(manifests)}, as_json, _show_stability)
    else:
        print_facts({"subsets": subsets, **compare(manifests[0], manifests[1], examples)}, as_json, _show_diff)


def _show_subsets(subsets: Sequence[Mapping[str, Any]]) -> list[str]:
    return [
        f"{letter}  {one['given']}: version {one['version']}, {one['kept']:,} of {one['rows']:,} rows kept, "
        f"subset {one['subset_id'][:12]}"
        for letter, one in zip(_letters(len(subsets)), subsets, strict=True)
    ]


def _letters(count: int) -> list[str]:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return [alphabet[i] if count <= len(alphabet) else str(i + 1) for i in range(count)]


def _show_diff(facts: Mapping[str, Any]) -> str:
    lines = _show_subsets(facts["subsets"])
    rows, kept = facts["rows"], facts["kept"]
    if rows["only_a"] or rows["only_b"]:
        lines.append(
            f"other rows to choose from: {rows['both']:,} are in both datasets, {rows['only_a']:,} in A's only, "
            f"{rows['only_b']:,} in B's only; {rows['changed']:,} ids have another content"
        )
    lines += [
        "",
        f"kept by both {kept['both']:,}, by A only {kept['only_a']:,}, by B only {kept['only_b']:,}",
        f"Jaccard {kept['jaccard']:.4f}; of random subsets of these sizes about {kept['expected_jaccard']:.4f}",
    ]
    for name, keeps, other in (("went", "A", "B"), ("came", "B", "A")):
        if facts[name]:
            lines += ["", f"kept by {keeps}, not by {other}; what {other} says of them:"]
            lines += [line for group in facts[name] for line in _show_group(group)]
    lines += ["", f"{'shares':<10} {'distance':>8}   largest shifts, A to B"]
    lines += [_show_shares(name, shares) for name, shares in facts["shares"].items()]
    lines += _show_coverage(facts["coverage"])
    weights = facts["weights"]
    if weights is not None:
        lines.append(
            f"weights of the {weights['rows']:,} rows in both: "
            + (
                f"changed by {weights['mean_change']:.4g} in the mean, at most by {weights['max_change']:.4g} "
                f"({visible(weights['sample_id'])}: {weights['a']:.4g} to {weights['b']:.4g})"
                if weights["max_change"]
                else "the same"
            )
        )
    return "\n".join([*lines, *(f"note: {note}" for note in facts["notes"])])


def _show_group(group: Mapping[str, Any]) -> list[str]:
    stage = f"{group['stage']}: " if group["stage"] else ""
    lines = [f"{group['rows']:>11,}  {stage}{group['decision'].replace('_', ' ')}: {group['reason']}"]
    for row in group["examples"]:
        stands = row["stands_for_it"]
        lines.append(
            f"{'':13}{visible(row['sample_id'])} (row {row['row']})"
            + ("" if stands is None else f"; {visible(stands)} stands for it")
        )
    return lines


def _show_shares(name: str, shares: Mapping[str, Any] | None) -> str:
    if shares is None or shares["distance"] is None:
        return f"{name:<10} {'-':>8}   not known of both"
    totals = {side: max(1, sum(group[side] for group in shares["groups"])) for side in "ab"}
    shifts = [
        f"{visible(str(group['name']), 40)} {group['a'] / totals['a']:.1%} to {group['b'] / totals['b']:.1%}"
        for group in shares["groups"][:_SHOWN]
    ]
    unknown = shares["unknown_a"], shares["unknown_b"]
    left_out = f"; without {unknown[0]:,} rows of A and {unknown[1]:,} of B" if any(unknown) else ""
    return f"{name:<10} {shares['distance']:>8.4f}   {', '.join(shifts)}{left_out}"


def _show_coverage(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return ["coverage: no vectors at hand"]
    of = f"{found['rows']:,} rows" + (
        f", {found['measured']:,} of them measured" if found["measured"] < found["rows"] else ""
    )
    lines = [f"cosine distance to the nearest kept row ({of}; vectors of {found['of']}, {found['embeddings']})"]
    for name in "ab":
        one = found[name]
        figures = (
            "none has a vector" if one["mean"] is None else f"mean {one['mean']:.4f}, 95 % within {one['p95']:.4f}"
        )
        lines.append(f"  {name.upper()}  {figures} ({one['kept']:,} kept rows)")
    return lines


def _show_stability(facts: Mapping[str, Any]) -> str:
    letters = _letters(len(facts["subsets"]))
    lines = [*_show_subsets(facts["subsets"]), "", "Jaccard " + "".join(f"{letter:>8}" for letter in letters)]
    for letter, row in zip(letters, facts["jaccard"], strict=True):
        lines.append(f"{letter:<8}" + "".join(f"{value:>8.4f}" for value in row))
    lines += [
        f"mean {facts['mean_jaccard']:.4f}; of random subsets of these sizes about "
        f"{facts['mean_expected_jaccard']:.4f}",
        f"kept by all {facts['kept_by_all']:,}, by any {facts['kept_by_any']:,}; by exactly "
        + ", ".join(f"{number}: {count:,}" for number, count in enumerate(facts["kept_by"], 1)),
    ]
    return "\n".join(lines)
