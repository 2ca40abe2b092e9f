//! IDX files (the format of MNIST), gzipped or not, read without trusting them.
//!
//! The format: two zero bytes, a type byte (0x08 = unsigned byte), the number
//! of dimensions, each dimension as a big-endian u32, then the elements
//! (<http://yann.lecun.com/exdb/mnist/>). Nothing is allocated before the
//! declared sizes were compared with the size of the file: exactly for plain
//! files, by deflate's greatest ratio for gzipped ones; and a gzip stream is
//! read only to its declared end. Neighbour: `image.rs` finds the files and
//! makes batches of them.

use std::fs::File;
use std::io::{BufReader, ErrorKind as IoKind, Read};
use std::path::Path;

use entrenar_base::{Error, Result};
use flate2::bufread::MultiGzDecoder;

use super::files::regular_size;

/// The element type that images and labels use.
const UNSIGNED_BYTE: u8 = 0x08;
/// Deflate codes at most 258 bytes in two bits or so: zlib's documentation gives 1032 : 1.
const GREATEST_RATIO: u64 = 1032;

/// Unsigned bytes with their dimensions.
#[derive(Debug)]
pub(super) struct Idx {
    pub dims: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// Reads an IDX file of unsigned bytes with `rank` dimensions.
pub(super) fn read_idx(file: &Path, rank: usize) -> Result<Idx> {
    let size = regular_size(file)?;
    let opened =
        File::open(file).map_err(|error| Error::io(file, "cannot open the file", error))?;
    let mut reader = BufReader::new(opened);
    // The name may lie; the first two bytes of gzip cannot begin an IDX file.
    let start = std::io::BufRead::fill_buf(&mut reader)
        .map_err(|error| Error::io(file, "cannot read the file", error))?;
    if start.starts_with(&[0x1f, 0x8b]) {
        parse(
            file,
            MultiGzDecoder::new(reader),
            rank,
            Bound::AtMost(size.saturating_mul(GREATEST_RATIO)),
        )
    } else {
        parse(file, reader, rank, Bound::Exactly(size))
    }
}

/// How many bytes the content can have.
enum Bound {
    Exactly(u64),
    AtMost(u64),
}

fn parse(file: &Path, mut reader: impl Read, rank: usize, bound: Bound) -> Result<Idx> {
    let fault = |message: String| Error::format(file, message);
    let mut magic = [0; 4];
    let got = fill(&mut reader, &mut magic).map_err(|error| damaged(file, error))?;
    if got < magic.len() {
        return Err(fault(format!(
            "expected an IDX header of 4 bytes, got {got}"
        )));
    }
    if magic[..2] != [0, 0] {
        return Err(fault(format!(
            "expected an IDX file beginning with two zero bytes, got {:02x} {:02x} {:02x} {:02x}",
            magic[0], magic[1], magic[2], magic[3]
        )));
    }
    if magic[2] != UNSIGNED_BYTE {
        return Err(fault(format!(
            "expected elements of type 0x08 (unsigned byte), got type 0x{:02x}{}",
            magic[2],
            match magic[2] {
                0x09 => " (signed byte)",
                0x0b => " (i16)",
                0x0c => " (i32)",
                0x0d => " (f32)",
                0x0e => " (f64)",
                _ => "",
            }
        )));
    }
    if usize::from(magic[3]) != rank {
        return Err(fault(format!(
            "expected {rank} dimensions, got {}",
            magic[3]
        )));
    }
    let mut dims = Vec::with_capacity(rank);
    for index in 0..rank {
        let mut word = [0; 4];
        if fill(&mut reader, &mut word).map_err(|error| damaged(file, error))? < word.len() {
            return Err(fault(format!(
                "the file ends within dimension {} of {rank}",
                index + 1
            )));
        }
        dims.push(u64::from(u32::from_be_bytes(word)));
    }
    if let Some(index) = dims.iter().position(|&dim| dim == 0) {
        return Err(fault(format!(
            "dimension {} of {dims:?} is zero",
            index + 1
        )));
    }
    let header = 4 + 4 * rank as u64;
    let declared = dims
        .iter()
        .try_fold(1u64, |product, &dim| product.checked_mul(dim))
        .filter(|&bytes| bytes < usize::MAX as u64 / 2)
        .ok_or_else(|| {
            fault(format!(
                "the dimensions {dims:?} declare more bytes than any file has"
            ))
        })?;
    match bound {
        Bound::Exactly(size) if size - header != declared => {
            return Err(fault(format!(
                "the dimensions {dims:?} declare {declared} bytes, but {} follow the header",
                size - header
            )));
        }
        Bound::AtMost(most) if declared > most => {
            return Err(fault(format!(
                "the dimensions {dims:?} declare {declared} bytes, but the compressed file holds at most {most}"
            )));
        }
        _ => {}
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(declared as usize).map_err(|_| {
        fault(format!(
            "no memory for the {declared} bytes that the dimensions {dims:?} declare"
        ))
    })?;
    // One byte more than declared, so that surplus is noticed and a bomb is not unpacked.
    let got = reader
        .take(declared + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| damaged(file, error))?;
    if got as u64 != declared {
        return Err(fault(if (got as u64) < declared {
            format!(
                "the dimensions {dims:?} declare {declared} bytes, but only {got} follow the header"
            )
        } else {
            format!("the dimensions {dims:?} declare {declared} bytes, but more follow")
        }));
    }
    Ok(Idx {
        dims: dims.into_iter().map(|dim| dim as usize).collect(),
        bytes,
    })
}

/// Reads until `buffer` is full or the end; how much came.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match reader.read(&mut buffer[got..]) {
            Ok(0) => break,
            Ok(count) => got += count,
            Err(error) if error.kind() == IoKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(got)
}

/// A truncated or corrupt gzip stream is a fault of the content, not of the system.
fn damaged(file: &Path, error: std::io::Error) -> Error {
    match error.kind() {
        IoKind::UnexpectedEof => Error::format(file, "the gzip stream is cut short"),
        IoKind::InvalidInput | IoKind::InvalidData => {
            Error::format(file, format!("the gzip stream is damaged: {error}"))
        }
        _ => Error::io(file, "cannot read the file", error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn read(bytes: &[u8], rank: usize) -> Result<Idx> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x");
        std::fs::write(&file, bytes).unwrap();
        read_idx(&file, rank)
    }

    const GOOD: [u8; 18] = [0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 2, 7, 9];

    #[test]
    fn plain_and_gzipped_files_hold_the_same() {
        for bytes in [GOOD.to_vec(), gzip(&GOOD)] {
            let idx = read(&bytes, 3).unwrap();
            assert_eq!((idx.dims, idx.bytes), (vec![1, 1, 2], vec![7, 9]));
        }
    }

    #[test]
    fn every_cut_and_every_surplus_is_noticed() {
        let zipped = gzip(&GOOD);
        for end in 0..GOOD.len() {
            assert!(read(&GOOD[..end], 3).is_err(), "plain, {end} bytes");
        }
        for end in 0..zipped.len() {
            assert!(read(&zipped[..end], 3).is_err(), "gzipped, {end} bytes");
        }
        let longer = [&GOOD[..], &[1]].concat();
        assert!(read(&longer, 3).is_err());
        assert!(read(&gzip(&longer), 3).is_err());
    }

    #[test]
    fn a_flipped_bit_in_a_gzip_stream_never_changes_pixels_silently() {
        let zipped = gzip(&GOOD);
        // Bytes 4 to 9 of the gzip header are a time and flags that do not touch the content.
        for position in (0..zipped.len()).filter(|position| !(4..10).contains(position)) {
            for bit in 0..8 {
                let mut broken = zipped.clone();
                broken[position] ^= 1 << bit;
                if let Ok(idx) = read(&broken, 3) {
                    assert_eq!(idx.bytes, [7, 9], "byte {position} bit {bit}");
                }
            }
        }
    }

    #[test]
    fn huge_declared_sizes_are_refused_before_any_allocation() {
        let mut lying = GOOD;
        lying[4..16].fill(0xff);
        assert!(
            read(&lying, 3)
                .unwrap_err()
                .to_string()
                .contains("more bytes than any file has")
        );
        assert!(read(&gzip(&lying), 3).is_err());
        lying[8..16].copy_from_slice(&[0, 0, 0, 200, 0, 0, 0, 1]);
        assert!(
            read(&gzip(&lying), 3)
                .unwrap_err()
                .to_string()
                .contains("holds at most")
        );
    }

    #[test]
    fn a_gzip_bomb_is_read_only_to_its_declared_end() {
        let mut bomb = GOOD.to_vec();
        bomb.resize(64 << 20, 0);
        let error = read(&gzip(&bomb), 3).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("declare 2 bytes, but more follow"),
            "{error}"
        );
    }
}
