"""Arrow schemas of the small tables beside the shards."""

import pyarrow as pa

# Marks that people set on single rows: `keep` or `drop`, and why.
MARKS = pa.schema(
    [("row_id", pa.string()), ("mark", pa.string()), ("note", pa.string()), ("marked_at", pa.timestamp("us", "UTC"))]
)

# Rows that must never come back, by all that is kept of them: the hashes of their uri and of their bytes.
TOMBSTONES = pa.schema(
    [
        ("row_id", pa.string()),
        ("track_id", pa.string()),  # null where the file could not be read
        ("reason", pa.string()),
        ("forgotten_at", pa.timestamp("us", "UTC")),
    ]
)
