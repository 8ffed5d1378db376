"""Arrow schemas of the small tables beside the shards."""

import pyarrow as pa

# What a person said of single rows: `keep` or `drop`, and why.
MARKS = pa.schema(
    [("row_id", pa.string()), ("mark", pa.string()), ("note", pa.string()), ("marked_at", pa.timestamp("us", "UTC"))]
)

# What may never come back: rows by what is left of them, the hashes of their uri and of their bytes.
TOMBSTONES = pa.schema(
    [
        ("row_id", pa.string()),
        ("track_id", pa.string()),  # null where the file could not be read
        ("reason", pa.string()),
        ("forgotten_at", pa.timestamp("us", "UTC")),
    ]
)
