//! Rows of Parquet files as JSON objects.
//!
//! Read by the `parquet` crate without Arrow; snappy, gzip and zstd are understood, other compressions are an error that
//! names them. A damaged file that makes the reader panic is an error too.
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
    use std::sync::Arc;

    use entrenar_base::Error;
    use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};

    crate::data::files::regular_size(file)?;
    let unreadable = |e| Error::io(file, "cannot read the file", e);
    let opened = std::fs::File::open(file).map_err(unreadable)?;
    let again = Arc::new(opened.try_clone().map_err(unreadable)?);
    let fault = |e: parquet::errors::ParquetError| Error::format(file, format!("Parquet: {e}"));
    let damaged = |_| Error::format(file, "Parquet: the file is damaged");
    // The reader checks most of what it reads, but not all.
    let guarded = AssertUnwindSafe(|| SerializedFileReader::new(opened));
    let reader = catch_unwind(guarded).map_err(damaged)?.map_err(fault)?;
    catch_unwind(AssertUnwindSafe(|| check_compression(file, &reader))).map_err(damaged)??;
    let mut number = 0;
    for stored in reader.metadata().row_groups() {
        let group = pages::Group::new(&again, stored).map_err(fault)?;
        let rows = catch_unwind(AssertUnwindSafe(|| group.get_row_iter(None)));
        let mut rows = rows.map_err(damaged)?.map_err(fault)?;
        while let Some(row) = catch_unwind(AssertUnwindSafe(|| rows.next())).map_err(damaged)? {
            number += 1;
            let columns = row.map_err(fault)?.into_columns();
            let values = columns
                .into_iter()
                .map(|(name, field)| (name, convert::json(field)));
            take(number, values.collect())?;
        }
    }
    Ok(number)
}

/// Refuses what there is no decoder for, before rows were read.
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
                Compression::UNCOMPRESSED
                | Compression::SNAPPY
                | Compression::GZIP(_)
                | Compression::ZSTD(_) => continue,
                other => format!("{other:?}").to_ascii_lowercase(),
            };
            let (column, command) = (column.column_path().string(), "pyarrow.parquet.write_table");
            return Err(crate::data::report::unusable(
                file,
                format!(
                    "column {column} is compressed with {name}; expected snappy, gzip, zstd or no compression: \
                     write the file again, such as by {command}(…, compression=\"snappy\")"
                ),
            ));
        }
    }
    Ok(())
}

/// Row groups with columns in zstd, which the `parquet` crate would decode in C: its reader is told that such a column
/// is not compressed, and what it then takes for a page's content is decoded here, by a decoder written in Rust.
#[cfg(feature = "parquet")]
mod pages {
    use std::fs::File;
    use std::io::Read;
    use std::sync::Arc;

    use parquet::basic::Compression;
    use parquet::bloom_filter::Sbbf;
    use parquet::column::page::{Page, PageMetadata, PageReader};
    use parquet::errors::{ParquetError, Result};
    use parquet::file::metadata::RowGroupMetaData;
    use parquet::file::reader::RowGroupReader;
    use parquet::file::serialized_reader::SerializedPageReader;
    use parquet::record::reader::RowIter;
    use parquet::schema::types::Type;
    use ruzstd::decoding::StreamingDecoder;

    pub struct Group {
        file: Arc<File>,
        /// With its columns in zstd called uncompressed.
        told: RowGroupMetaData,
        /// For a column in zstd the bytes of all its pages, decoded.
        decoded: Vec<Option<u64>>,
    }

    impl Group {
        pub fn new(file: &Arc<File>, stored: &RowGroupMetaData) -> Result<Group> {
            let (mut columns, mut decoded) = (Vec::new(), Vec::new());
            for column in stored.columns() {
                let zstd = matches!(column.compression(), Compression::ZSTD(_));
                // A size below zero is no size: nothing fits into it.
                let size = u64::try_from(column.uncompressed_size()).unwrap_or(0);
                decoded.push(zstd.then_some(size));
                columns.push(match zstd {
                    true => column
                        .clone()
                        .into_builder()
                        .set_compression(Compression::UNCOMPRESSED)
                        .build()?,
                    false => column.clone(),
                });
            }
            let told = stored.clone().into_builder().set_column_metadata(columns);
            Ok(Group {
                file: file.clone(),
                told: told.build()?,
                decoded,
            })
        }
    }

    impl RowGroupReader for Group {
        fn metadata(&self) -> &RowGroupMetaData {
            &self.told
        }

        fn num_columns(&self) -> usize {
            self.told.num_columns()
        }

        fn get_column_page_reader(&self, i: usize) -> Result<Box<dyn PageReader>> {
            let rows = usize::try_from(self.told.num_rows())?;
            let pages =
                SerializedPageReader::new(self.file.clone(), self.told.column(i), rows, None)?;
            Ok(match self.decoded[i] {
                Some(left) => Box::new(Pages { pages, left }),
                None => Box::new(pages),
            })
        }

        fn get_column_bloom_filter(&self, _: usize) -> Option<&Sbbf> {
            None
        }

        fn get_row_iter(&self, projection: Option<Type>) -> Result<RowIter<'_>> {
            RowIter::from_row_group(projection, self)
        }
    }

    /// The pages of a column in zstd.
    struct Pages {
        pages: SerializedPageReader<File>,
        /// Bytes that the file says are still to come: what protects from a page that swells without end.
        left: u64,
    }

    impl Pages {
        fn decode(&mut self, page: Page) -> Result<Page> {
            Ok(match page {
                Page::DataPage {
                    buf,
                    num_values,
                    encoding,
                    def_level_encoding,
                    rep_level_encoding,
                    statistics,
                } => Page::DataPage {
                    buf: decoded(&buf, 0, &mut self.left)?.into(),
                    num_values,
                    encoding,
                    def_level_encoding,
                    rep_level_encoding,
                    statistics,
                },
                Page::DataPageV2 {
                    buf,
                    num_values,
                    encoding,
                    num_nulls,
                    num_rows,
                    def_levels_byte_len,
                    rep_levels_byte_len,
                    is_compressed: true,
                    statistics,
                } => Page::DataPageV2 {
                    // The levels before the values are never compressed.
                    buf: {
                        let levels = def_levels_byte_len as usize + rep_levels_byte_len as usize;
                        decoded(&buf, levels, &mut self.left)?.into()
                    },
                    num_values,
                    encoding,
                    num_nulls,
                    num_rows,
                    def_levels_byte_len,
                    rep_levels_byte_len,
                    is_compressed: false,
                    statistics,
                },
                Page::DictionaryPage {
                    buf,
                    num_values,
                    encoding,
                    is_sorted,
                } => Page::DictionaryPage {
                    buf: decoded(&buf, 0, &mut self.left)?.into(),
                    num_values,
                    encoding,
                    is_sorted,
                },
                plain => plain,
            })
        }
    }

    /// The first `plain` bytes as they are, and what the rest means; `left` becomes less by that.
    fn decoded(stored: &[u8], plain: usize, left: &mut u64) -> Result<Vec<u8>> {
        // A page's size is an i32 in the format.
        const LONGEST: u64 = i32::MAX as u64;
        let fault = |what: &str| ParquetError::General(format!("a page in zstd {what}"));
        let short = || fault("is shorter than its header says");
        let (levels, mut rest) = stored.split_at_checked(plain).ok_or_else(short)?;
        let mut out = levels.to_vec();
        while !rest.is_empty() {
            let frame =
                StreamingDecoder::new(&mut rest).map_err(|e| fault(&format!("is damaged: {e}")))?;
            let most = (*left).min(LONGEST);
            let read = frame
                .take(most + 1)
                .read_to_end(&mut out)
                .map_err(|e| fault(&format!("is damaged: {e}")))? as u64;
            if read > most {
                return Err(fault("is longer than the file says"));
            }
            *left -= read;
        }
        Ok(out)
    }

    impl Iterator for Pages {
        type Item = Result<Page>;

        fn next(&mut self) -> Option<Result<Page>> {
            self.get_next_page().transpose()
        }
    }

    impl PageReader for Pages {
        fn get_next_page(&mut self) -> Result<Option<Page>> {
            match self.pages.get_next_page()? {
                Some(page) => self.decode(page).map(Some),
                None => Ok(None),
            }
        }

        fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
            self.pages.peek_next_page()
        }

        fn skip_next_page(&mut self) -> Result<()> {
            self.pages.skip_next_page()
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        /// A frame of one block: 255 times the same byte.
        const FRAME: [u8; 10] = [0x28, 0xb5, 0x2f, 0xfd, 0x20, 255, 0xfb, 0x07, 0, b'a'];

        #[test]
        fn a_page_is_as_long_as_the_file_says_or_refused() {
            let page = [&b"lv"[..], &FRAME, &FRAME].concat();
            let mut left = 600;
            let all = decoded(&page, 2, &mut left).unwrap();
            assert_eq!(all, [&b"lv"[..], &[b'a'; 510]].concat());
            assert_eq!(left, 90);
            let told = |page: &[u8], plain, mut left| {
                decoded(page, plain, &mut left).unwrap_err().to_string()
            };
            for left in [0, 254, 509] {
                let message = told(&page, 2, left);
                assert!(
                    message.contains("is longer than the file says"),
                    "{message}"
                );
            }
            for cut in 1..10 {
                let message = told(&FRAME[..cut], 0, 600);
                assert!(message.contains("is damaged"), "{message}");
            }
            let message = told(b"abc", 4, 600);
            assert!(message.contains("is shorter than its header"), "{message}");
            assert!(decoded(b"abc", 3, &mut 0).is_ok());
        }
    }
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
