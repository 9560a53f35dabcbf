import hashlib
import json

import pytest

from tamis.manifests.fingerprint import dataset_fingerprint

A = {"path": "a.csv", "bytes": 3, "sha256": "aa", "rows": 2}
B = {"path": "sub/b.csv", "bytes": 4, "sha256": "bb", "rows": 5}
FIELDS = {"id": "id", "text": "text", "label": None}


def test_order_and_other_keys_do_not_matter():
    one = dataset_fingerprint([A, B], "schema", FIELDS)
    assert dataset_fingerprint([B, A | {"mtime": 17, "location": "/x"}], "schema", FIELDS) == one


def test_it_is_the_sha256_of_the_sorted_listing():
    listing = {"format": "tamis-dataset-1", "files": [A, B], "schema": "schema", "fields": FIELDS}
    text = json.dumps(listing, sort_keys=True, separators=(",", ":"))
    assert dataset_fingerprint([B, A], "schema", FIELDS) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("change", [{"path": "c.csv"}, {"bytes": 9}, {"sha256": "cc"}, {"rows": 9}])
def test_every_part_of_a_file_matters(change):
    assert dataset_fingerprint([A | change], "s", FIELDS) != dataset_fingerprint([A], "s", FIELDS)


def test_schema_and_fields_matter():
    one = dataset_fingerprint([A], "s", FIELDS)
    assert dataset_fingerprint([A], "t", FIELDS) != one
    assert dataset_fingerprint([A], "s", FIELDS | {"label": "y"}) != one


@pytest.mark.parametrize("path", ["/abs/a.csv", "../a.csv", "x/../../a.csv"])
def test_paths_stay_inside(path):
    with pytest.raises(ValueError, match="relative"):
        dataset_fingerprint([A | {"path": path}], "s", FIELDS)


def test_a_path_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        dataset_fingerprint([A, A], "s", FIELDS)
