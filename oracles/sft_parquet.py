"""Writes crates/train/tests/fixtures/chats-{snappy,gzip,zstd,zstd-v2,lz4}.parquet and texts-zstd.parquet.

Two conversations in the layout of hub datasets (a list of structs), written by pyarrow; the first is
the one of crates/train/tests/sft.rs. The texts are 2,000 rows in two groups of several pages each. Run: python oracles/sft_parquet.py   (needs pyarrow)
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
# lz4 is not read: the test is of the message.
for compression in ["snappy", "gzip", "zstd", "lz4"]:
    pq.write_table(table, OUT / f"chats-{compression}.parquet", compression=compression)
# Pages of the second version: levels before the values are not compressed. A group for each row.
pq.write_table(table, OUT / "chats-zstd-v2.parquet", compression="zstd", data_page_version="2.0", row_group_size=1)
texts = pa.table({"text": [f"{i} times {i % 7} is {i * (i % 7)}." for i in range(2000)]})
pq.write_table(
    texts,
    OUT / "texts-zstd.parquet",
    compression="zstd",
    row_group_size=1200,
    data_page_size=4096,
    write_batch_size=100,
    use_dictionary=False,
)
