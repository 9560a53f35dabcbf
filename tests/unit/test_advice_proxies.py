"""The proxies know no more than the rows that they are trained on."""

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.naive_bayes import ComplementNB
from sklearn.svm import LinearSVC

from tamis.advice.proxies import OF_VECTORS, OF_WORDS, accuracies, word_counts
from tamis.embeddings.encoders import TOKEN


def test_words_are_those_of_the_selected_rows():
    n = 60
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, n)
    texts = [" ".join([f"w{label}{rng.integers(4)}", *(f"c{i}" for i in rng.integers(0, 30, 6))]) for label in labels]
    train, test = np.arange(0, 20), np.arange(20, n)
    own, others = [texts[i] for i in train], [texts[i] for i in test]
    words = TfidfVectorizer(sublinear_tf=True, token_pattern=TOKEN).fit(own)
    svm = LinearSVC(random_state=0).fit(words.transform(own), labels[train])
    found = accuracies(OF_WORDS, word_counts(texts), labels, train, test)
    assert found["linear SVM of words"] == svm.score(words.transform(others), labels[test])
    counts = CountVectorizer(token_pattern=TOKEN).fit(own)
    bayes = ComplementNB().fit(counts.transform(own), labels[train])
    assert found["naive Bayes"] == bayes.score(counts.transform(others), labels[test])


def test_vectors_and_a_single_class():
    X = np.random.default_rng(0).normal(size=(40, 3))
    labels = (X[:, 0] > 0).astype(np.int64)
    found = accuracies(OF_VECTORS, X, labels, np.arange(20), np.arange(20, 40))
    assert set(found) == {"linear SVM", "nearest neighbours"}
    assert min(found.values()) > 0.7
    one = np.flatnonzero(labels)[:4]
    share = labels[20:].mean()
    assert accuracies(OF_VECTORS, X, labels, one, np.arange(20, 40)) == dict.fromkeys(OF_VECTORS, share)
    few = accuracies(OF_VECTORS, X, labels, np.array([0, 1, 2, 3]), np.arange(20, 40))  # fewer than neighbours
    assert all(0 <= value <= 1 for value in few.values())
