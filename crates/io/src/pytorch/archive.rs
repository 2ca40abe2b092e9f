//! The zip archive that `torch.save` writes: a central directory over stored entries.
//!
//! PyTorch stores its entries uncompressed, so that an entry is a range of the file and nothing is
//! ever unpacked: the pages of a mapped file are the tensors. Compressed, encrypted, split or
//! overlapping entries are refused. Layout of the records: PKWARE's APPNOTE 6.3, sections 4.3.7 to
//! 4.3.16, with the zip64 forms that files beyond 4 GiB need.

use std::collections::HashMap;
use std::ops::Range;

use crate::names::Printable;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;
/// The end record without its comment, and the longest comment.
const END_BYTES: usize = 22;
const LONGEST_COMMENT: usize = 0xffff;

/// The entries of an archive, as ranges of the file.
pub(super) struct Archive<'a> {
    entries: HashMap<&'a str, Range<usize>>,
    /// The folder in which everything lies, with its slash.
    folder: &'a str,
}

impl<'a> Archive<'a> {
    /// Reads the directory of the archive `bytes`.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Archive<'a>, String> {
        let (count, directory) = directory(bytes)?;
        let mut entries = HashMap::new();
        let mut at = directory.start;
        let mut total = 0usize;
        for n in 0..count {
            let (name, range, next) = entry(bytes, at, directory.end)
                .map_err(|e| format!("entry {n} of the archive, byte {at}: {e}"))?;
            at = next;
            total = total.saturating_add(range.len());
            if entries.insert(name, range).is_some() {
                return Err(format!(
                    "the archive holds two entries `{}`",
                    Printable(name)
                ));
            }
        }
        if total > bytes.len() {
            return Err(format!(
                "the archive's entries overlap: {total} bytes of them in a file of {}",
                bytes.len()
            ));
        }
        let mut pickles = entries.keys().filter_map(|name| {
            let folder = name.strip_suffix("data.pkl")?;
            (folder.find('/') == Some(folder.len().wrapping_sub(1))).then_some(folder)
        });
        let folder = match (pickles.next(), pickles.next()) {
            (Some(folder), None) => folder,
            (None, _) => {
                return Err("not a PyTorch file: the archive has no FOLDER/data.pkl".into());
            }
            (Some(_), Some(_)) => return Err("the archive has several data.pkl".into()),
        };
        let archive = Archive { entries, folder };
        if let Some(order) = archive.get("byteorder").map(|range| &bytes[range])
            && order.trim_ascii() != b"little"
        {
            return Err(format!(
                "the archive's byte order is {}, only `little` is read",
                match std::str::from_utf8(order) {
                    Ok(text) if text.len() < 40 => format!("`{}`", Printable(text.trim())),
                    _ => "no short text".into(),
                }
            ));
        }
        Ok(archive)
    }

    /// Where the entry `name` of the archive's folder lies.
    pub(super) fn get(&self, name: &str) -> Option<Range<usize>> {
        self.entries
            .get(format!("{}{name}", self.folder).as_str())
            .cloned()
    }
}

/// Number of entries, and where their records lie.
fn directory(bytes: &[u8]) -> Result<(u64, Range<usize>), String> {
    let no_end = || {
        format!(
            "the archive has no end record in its last bytes: a file of {} bytes that was cut short?",
            bytes.len()
        )
    };
    let last = bytes.len().checked_sub(END_BYTES).ok_or_else(no_end)?;
    let end = (last.saturating_sub(LONGEST_COMMENT)..=last)
        .rev()
        .find(|&at| u32_at(bytes, at) == Some(END))
        .ok_or_else(no_end)?;
    let short = |at| u16_at(bytes, at).ok_or_else(no_end);
    let word = |at| u32_at(bytes, at).ok_or_else(no_end);
    if short(end + 4)? != 0 && short(end + 4)? != u16::MAX {
        return Err("the archive is split over several files".into());
    }
    let mut count = u64::from(short(end + 10)?);
    let mut size = u64::from(word(end + 12)?);
    let mut start = u64::from(word(end + 16)?);
    let mut before = end;
    let wide =
        count == u64::from(u16::MAX) || size == u64::from(u32::MAX) || start == u64::from(u32::MAX);
    if wide
        && let Some(locator) = end
            .checked_sub(20)
            .filter(|&a| u32_at(bytes, a) == Some(LOCATOR64))
    {
        let lost = || "the archive's zip64 end record is not where it should be".to_string();
        let at = u64_at(bytes, locator + 8).ok_or_else(lost)?;
        let at = usize::try_from(at).map_err(|_| lost())?;
        if u32_at(bytes, at) != Some(END64) {
            return Err(lost());
        }
        let long = |from: usize| u64_at(bytes, at + from).ok_or_else(lost);
        (count, size, start) = (long(32)?, long(40)?, long(48)?);
        before = at;
    }
    let range = usize::try_from(start)
        .ok()
        .zip(
            start
                .checked_add(size)
                .and_then(|e| usize::try_from(e).ok()),
        )
        .map(|(from, to)| from..to)
        .filter(|range| range.end <= before)
        .ok_or_else(|| {
            format!(
                "the archive's directory should lie at {start}, {size} bytes long: not in the file"
            )
        })?;
    Ok((count, range))
}

/// One record of the directory: the entry's name, where its data lies, and the next record.
fn entry(bytes: &[u8], at: usize, end: usize) -> Result<(&str, Range<usize>, usize), String> {
    const FIXED: usize = 46;
    let record = bytes
        .get(at..end)
        .filter(|r| r.len() >= FIXED && u32_at(r, 0) == Some(CENTRAL))
        .ok_or("no directory record here")?;
    let short = |from| u16_at(record, from).map(usize::from).unwrap_or_default();
    let word = |from| u64::from(u32_at(record, from).unwrap_or_default());
    let name_end = FIXED + short(28);
    let extra_end = name_end + short(30);
    let next = extra_end + short(32);
    if next > record.len() {
        return Err("the record leaves the directory".into());
    }
    let name = std::str::from_utf8(&record[FIXED..name_end])
        .map_err(|_| "its name is not text".to_string())?;
    let shown = Printable(name);
    if short(8) & 1 != 0 {
        return Err(format!("`{shown}` is encrypted"));
    }
    if short(10) != 0 {
        return Err(format!(
            "`{shown}` is compressed (method {}); PyTorch stores its entries",
            short(10)
        ));
    }
    let (mut stored, mut size, mut local) = (word(20), word(24), word(42));
    let mut wide = wide_fields(&record[name_end..extra_end]);
    // In this order, and only those whose narrow field is full.
    for field in [&mut size, &mut stored, &mut local] {
        if *field == u64::from(u32::MAX) {
            *field = wide
                .next()
                .ok_or_else(|| format!("`{shown}` lacks a zip64 field"))?;
        }
    }
    if stored != size {
        return Err(format!(
            "`{shown}` is stored in {stored} bytes but {size} long"
        ));
    }
    let outside = || format!("`{shown}` should lie at {local}, {size} bytes long: not in the file");
    let local = usize::try_from(local).map_err(|_| outside())?;
    if u32_at(bytes, local) != Some(LOCAL) {
        return Err(format!("`{shown}` has no header at {local}"));
    }
    let lengths = u16_at(bytes, local + 26).zip(u16_at(bytes, local + 28));
    let (name_length, extra_length) = lengths.ok_or_else(outside)?;
    let start = local + 30 + usize::from(name_length) + usize::from(extra_length);
    let range = usize::try_from(size)
        .ok()
        .and_then(|size| start.checked_add(size))
        .filter(|&end| end <= bytes.len())
        .map(|end| start..end)
        .ok_or_else(outside)?;
    Ok((name, range, at + next))
}

/// The numbers of the zip64 extra field, if there is one.
fn wide_fields(mut extra: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let mut found: &[u8] = &[];
    while let (Some(id), Some(length)) = (u16_at(extra, 0), u16_at(extra, 2)) {
        let Some(body) = extra.get(4..4 + usize::from(length)) else {
            break;
        };
        if id == 1 {
            found = body;
        }
        extra = &extra[4 + body.len()..];
    }
    found
        .as_chunks::<8>()
        .0
        .iter()
        .map(|c| u64::from_le_bytes(*c))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
