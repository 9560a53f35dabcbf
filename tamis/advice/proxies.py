"""Cheap classifiers that measure what a subset is worth: two families, none of which selects."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from tamis.embeddings.encoders import TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    Labels = npt.NDArray[np.int64]
    Proxy = Callable[[Any, Labels, Any], Labels]


def word_counts(texts: Sequence[str]) -> Any:
    """How often each word occurs in each text: a sparse int64 [n, words]."""
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer(token_pattern=TOKEN).fit_transform(texts).tocsr()


def accuracies(
    proxies: dict[str, Proxy], X: Any, labels: Labels, train: npt.NDArray[np.int64], test: npt.NDArray[np.int64]
) -> dict[str, float]:
    """Train each family on some rows, and measure it on others.

    Args:
        proxies: `OF_WORDS` or `OF_VECTORS`.
        X: Word counts or vectors [n, d].
        labels: int64 [n].
        train: int64 [k], rows.
        test: int64 [m], rows.

    Returns:
        The share of right answers, in [0, 1], by family.
    """
    known, wanted = labels[train], labels[test]
    if len(np.unique(known)) == 1:  # nothing to learn: every answer is the one class
        return dict.fromkeys(proxies, float(np.mean(wanted == known[0])))
    return {name: float(np.mean(proxy(X[train], known, X[test]) == wanted)) for name, proxy in proxies.items()}


def _svm(X: Any, labels: Labels, others: Any) -> Labels:
    """A linear support vector machine."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a proxy that is nearly there measures as well
        found: Labels = LinearSVC(random_state=0).fit(X, labels).predict(others)
    return found


def _svm_of_words(X: Any, labels: Labels, others: Any) -> Labels:
    """The same on TF-IDF, of the words that occur in the rows to train on."""
    from sklearn.feature_extraction.text import TfidfTransformer

    X, others = _known_words(X, others)
    weights = TfidfTransformer(sublinear_tf=True).fit(X)
    return _svm(weights.transform(X), labels, weights.transform(others))


def _bayes(X: Any, labels: Labels, others: Any) -> Labels:
    """Complement naive Bayes (Rennie et al., ICML 2003)."""
    from sklearn.naive_bayes import ComplementNB

    X, others = _known_words(X, others)
    found: Labels = ComplementNB().fit(X, labels).predict(others)
    return found


def _known_words(X: Any, others: Any) -> tuple[Any, Any]:
    known = np.flatnonzero(X.getnnz(axis=0))
    return X[:, known], others[:, known]


def _neighbours(X: Any, labels: Labels, others: Any) -> Labels:
    """The vote of the five nearest."""
    from sklearn.neighbors import KNeighborsClassifier

    found: Labels = KNeighborsClassifier(min(5, len(labels)), algorithm="brute").fit(X, labels).predict(others)
    return found


OF_WORDS: dict[str, Proxy] = {"linear SVM of words": _svm_of_words, "naive Bayes": _bayes}
OF_VECTORS: dict[str, Proxy] = {"linear SVM": _svm, "nearest neighbours": _neighbours}
