"""Writes crates/train/tests/fixtures/chats-{snappy,gzip,zstd}.parquet.

Two conversations in the layout of hub datasets (a list of structs), written by pyarrow; the first is
the one of crates/train/tests/sft.rs. Run: python oracles/sft_parquet.py   (needs pyarrow)
Neighbours: crates/train/tests/sft/formats.rs, crates/train/src/data/sft/parquet_file.rs.
"""

import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

OUT = pathlib.Path(__file__).parent.parent / "crates/train/tests/fixtures"


def message(role, content):
    return {"role": role, "content": content}


CHATS = [
    [
        message("system", "Be brief."),
        message("user", "One?"),
        message("assistant", "1"),
        message("user", "Two?"),
        message("assistant", " 2 "),
    ],
    [message("user", "Naïve?"), message("assistant", "é\n")],
]

table = pa.table({"id": pa.array([1, 2]), "messages": CHATS, "source": pa.array([None, "b"])})
# The last of these is not read: the test is of the message.
for compression in ["snappy", "gzip", "zstd"]:
    pq.write_table(table, OUT / f"chats-{compression}.parquet", compression=compression)
