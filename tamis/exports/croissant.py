"""A description of an export that other tools understand: Croissant 1.1 (docs.mlcommons.org/croissant), a JSON-LD.

It names the files with their sha256, and the columns with their types. What is not known, such as a licence, is left
out, and so are columns that Croissant has no type for: bytes that are no images, and structs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tamis.manifests.canonical import sha256_file
from tamis.pipelines.sources import is_list, is_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tamis.exports.rows import KeptRows
    from tamis.manifests.reader import Manifest

_MEDIA_TYPES = {
    "parquet": "application/x-parquet",
    "jsonl": "application/jsonlines",
    "hf": "application/vnd.apache.arrow.stream",
}
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "arrayShape": "cr:arrayShape",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "containedIn": "cr:containedIn",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"},
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileObject": "cr:fileObject",
    "fileProperty": "cr:fileProperty",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isArray": "cr:isArray",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "name": {"@container": "@language"},
    "parentField": "cr:parentField",
    "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""The context that the specification gives for every file."""


def describe(manifest: Manifest, rows: KeptRows, to: str, files: Mapping[str, Path]) -> dict[str, Any]:
    """Describe an export.

    Args:
        manifest: What was exported.
        rows: Its rows.
        to: As what: one of `tamis.exports.DESCRIBED`.
        files: The files with data: the name that each will have, from the description's folder, and where it is now.
    """
    # Ids are numbered: they are part of URIs, which the names of files and columns need not be.
    distribution = [
        {
            "@type": "cr:FileObject",
            "@id": f"file-{number}",
            "name": name,
            "contentUrl": name,
            "contentSize": f"{path.stat().st_size} B",
            "encodingFormat": _MEDIA_TYPES[to],
            "sha256": sha256_file(path),
        }
        for number, (name, path) in enumerate(files.items())
    ]
    record = manifest.record
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": record["recipe"]["name"],
        "description": f"{len(rows.select)} of the {record['dataset']['rows']} rows of a dataset, in rank order: the "
        f"subset {manifest.subset_id} that Tamis chose of the dataset with the fingerprint {manifest.fingerprint}. "
        f"tamis_weight is the {record['weight_semantics']}.",
        "distribution": distribution,
        "recordSet": [_record_set(rows, number) for number in range(len(distribution))],
    }


def _record_set(rows: KeptRows, number: int) -> dict[str, Any]:
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"rows-{number}/{place}",
            "name": name,
            **described,
            "source": {"fileObject": {"@id": f"file-{number}"}, "extract": {"column": name}},
        }
        for place, name in enumerate(rows.schema.names)
        if (described := _type(rows, name)) is not None
    ]
    return {"@type": "cr:RecordSet", "@id": f"rows-{number}", "name": "rows", "field": fields}


def _type(rows: KeptRows, name: str) -> dict[str, Any] | None:
    kind = rows.schema.field(name).type
    if rows.fields.get("image") == name:
        return {"dataType": "sc:ImageObject"}
    if is_list(kind):
        length = kind.list_size if pa.types.is_fixed_size_list(kind) else -1
        of = _scalar_type(kind.value_type)
        return None if of is None else {"dataType": of, "isArray": True, "arrayShape": str(length)}
    of = _scalar_type(kind)
    return None if of is None else {"dataType": of}


def _scalar_type(kind: pa.DataType) -> str | None:
    if pa.types.is_integer(kind):
        return "cr:" + str(kind).replace("uint", "UInt").replace("int", "Int")
    if pa.types.is_floating(kind):
        return f"cr:Float{kind.bit_width}"
    if is_text(kind):
        return "sc:Text"
    if pa.types.is_boolean(kind):
        return "sc:Boolean"
    if pa.types.is_date(kind):
        return "sc:Date"
    if pa.types.is_timestamp(kind):
        return "sc:DateTime"
    return "sc:Time" if pa.types.is_time(kind) else None
