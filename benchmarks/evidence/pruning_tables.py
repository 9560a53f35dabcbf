"""The results of benchmarks/evidence/pruning.py as Markdown."""

from __future__ import annotations

from typing import Any

LEVEL = 0.05


def tables(results: dict[str, Any]) -> str:
    """A table of the arms for each kind of labels, and one of the comparisons.

    Args:
        results: Those of benchmarks/evidence/pruning.py.
    """
    parts = [
        f"Fashion-MNIST, 60,000 images, the bundled convolutional network, {results['epochs']} epochs, "
        f"{results['precision']}, {results['seeds']} seeds. Accuracy on the 10,000 test images (their labels untouched) "
        "with its 95 % interval; samples that were trained on, less than by full training; time as a share of the full "
        "training's, one thread (other work ran on the machine: the samples are the figure that counts). A ceiling "
        f"leaves out the {100 * results['ceiling']:.0f} % of the highest losses.",
    ]
    parts += [f"Labels: {labels}.\n\n{_arms(arms)}" for labels, arms in sorted(results["labels"].items(), reverse=True)]
    count = len(results["comparisons"])
    parts.append(
        f"What was compared, fixed before the first training: paired t-tests over the seeds, corrected by Holm over "
        f"all {count}, at the level of 5 %.\n\n{_comparisons(results)}"
    )
    return "\n\n".join(parts)


def _arms(arms: dict[str, dict[str, Any]]) -> str:
    """The best first."""
    lines = ["| trained | accuracy | samples saved | time |", "|---|---:|---:|---:|"]
    lines += [
        f"| {name} | {100 * found['accuracy']:.2f} % ± {100 * found['half_interval']:.2f} "
        f"| {100 * found['saved']:.0f} % | {100 * found['time']:.0f} % |"
        for name, found in sorted(arms.items(), key=lambda item: -item[1]["accuracy"])
    ]
    return "\n".join(lines)


def _comparisons(results: dict[str, Any]) -> str:
    lines = [
        "| labels | trained | against | points | p | by Holm | |",
        "|---|---|---|---:|---:|---:|---|",
    ]
    lines += [
        f"| {one['labels']} | {one['name']} | {one['against']} | {100 * one['mean']:+.2f} | {one['p']:.2g} "
        f"| {one['corrected']:.2g} | {_word(one)} |"
        for one in results["comparisons"]
    ]
    return "\n".join(lines)


def _word(comparison: dict[str, Any]) -> str:
    if comparison["corrected"] >= LEVEL:
        return "not distinguishable"
    return "better" if comparison["mean"] > 0 else "worse"
