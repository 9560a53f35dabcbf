"""What a manifest kept, written for other tools: tables, shards, lists of ids, and their description."""

FORMATS = ("parquet", "jsonl", "ids", "hf", "npy", "mds", "webdataset")
LISTS = ("ids", "npy")
"""The formats that say which samples were kept, and nothing of them."""
SHARDED = ("mds", "webdataset")
DESCRIBED = ("parquet", "jsonl", "hf")
"""The formats of which Croissant can say where a column is."""
