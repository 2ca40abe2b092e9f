//! Rows of Parquet files as JSON objects.
//!
//! Read by the `parquet` crate without Arrow; snappy and gzip are understood, other compressions
//! (zstd, whose decoder would be one in C) are an error that names them. A damaged file that makes the reader panic is an error too.
//! Neighbour: `rows` chooses the reader by the file's name.

use std::path::Path;

use entrenar_base::Result;
use serde_json::{Map, Value};

/// Takes the number of a row, from 1, and the row.
type Take<'a> = dyn FnMut(u64, Map<String, Value>) -> Result<()> + 'a;

#[cfg(not(feature = "parquet"))]
pub(super) fn read(file: &Path, _: &mut Take<'_>) -> Result<u64> {
    Err(crate::data::report::unusable(
        file,
        "this build reads no Parquet files (feature `parquet`)",
    ))
}

#[cfg(feature = "parquet")]
pub(super) fn read(file: &Path, take: &mut Take<'_>) -> Result<u64> {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use entrenar_base::Error;
    use parquet::file::reader::{FileReader, SerializedFileReader};

    crate::data::files::regular_size(file)?;
    let opened =
        std::fs::File::open(file).map_err(|e| Error::io(file, "cannot read the file", e))?;
    let fault = |e: parquet::errors::ParquetError| Error::format(file, format!("Parquet: {e}"));
    let damaged = |_| Error::format(file, "Parquet: the file is damaged");
    // The reader checks most of what it reads, but not all.
    let guarded = AssertUnwindSafe(|| SerializedFileReader::new(opened));
    let reader = catch_unwind(guarded).map_err(damaged)?.map_err(fault)?;
    catch_unwind(AssertUnwindSafe(|| check_compression(file, &reader))).map_err(damaged)??;
    let rows = catch_unwind(AssertUnwindSafe(|| reader.get_row_iter(None)));
    let mut rows = rows.map_err(damaged)?.map_err(fault)?;
    let mut number = 0;
    loop {
        let next = catch_unwind(AssertUnwindSafe(|| rows.next())).map_err(damaged)?;
        let Some(row) = next else {
            return Ok(number);
        };
        number += 1;
        let columns = row.map_err(fault)?.into_columns();
        let values = columns
            .into_iter()
            .map(|(name, field)| (name, convert::json(field)));
        take(number, values.collect())?;
    }
}

/// Refuses what the reader has no decoder for, before rows were read.
#[cfg(feature = "parquet")]
fn check_compression(
    file: &Path,
    reader: &parquet::file::reader::SerializedFileReader<std::fs::File>,
) -> Result<()> {
    use parquet::basic::Compression;
    use parquet::file::reader::FileReader;

    for group in reader.metadata().row_groups() {
        for column in group.columns() {
            let name = match column.compression() {
                Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_) => continue,
                Compression::ZSTD(_) => "zstd".to_string(),
                other => format!("{other:?}").to_ascii_lowercase(),
            };
            let (column, command) = (column.column_path().string(), "pyarrow.parquet.write_table");
            return Err(crate::data::report::unusable(
                file,
                format!(
                    "column {column} is compressed with {name}; expected snappy, gzip or no compression: \
                     write the file again, such as by {command}(…, compression=\"snappy\")"
                ),
            ));
        }
    }
    Ok(())
}

#[cfg(feature = "parquet")]
mod convert {
    use parquet::record::{Field, List, Map, Row};
    use serde_json::Value;

    /// The JSON value of a field; bytes that are no text, times and the like become their text.
    pub fn json(field: Field) -> Value {
        match field {
            Field::Null => Value::Null,
            Field::Bool(b) => b.into(),
            Field::Byte(n) => n.into(),
            Field::Short(n) => n.into(),
            Field::Int(n) => n.into(),
            Field::Long(n) => n.into(),
            Field::UByte(n) => n.into(),
            Field::UShort(n) => n.into(),
            Field::UInt(n) => n.into(),
            Field::ULong(n) => n.into(),
            Field::Float(x) => x.into(),
            Field::Double(x) => x.into(),
            Field::Str(text) => text.into(),
            Field::Bytes(bytes) => match bytes.as_utf8() {
                Ok(text) => text.into(),
                Err(_) => format!("{bytes:?}").into(),
            },
            Field::Group(row) => group(row),
            Field::ListInternal(list) => self::list(list),
            Field::MapInternal(map) => pairs(map),
            other => other.to_string().into(),
        }
    }

    fn group(row: Row) -> Value {
        let columns = row.into_columns().into_iter();
        Value::Object(columns.map(|(name, field)| (name, json(field))).collect())
    }

    fn list(list: List) -> Value {
        let elements = list.elements().iter().cloned();
        Value::Array(elements.map(json).collect())
    }

    fn pairs(map: Map) -> Value {
        let entry = |(key, value): &(Field, Field)| {
            let key = match json(key.clone()) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            (key, json(value.clone()))
        };
        Value::Object(map.entries().iter().map(entry).collect())
    }
}
