//! The safetensors format: a JSON header followed by plain tensors. Every number in the header is checked before use.
//!
//! The file has the header's length as a little-endian `u64`, the header, and the tensors. Offsets count from the
//! header's end.

use std::{collections::BTreeMap, fmt, ops::Range};

use safetensors::Dtype;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::Value;

use super::files::{ModelFiles, Stored};
use crate::{
    backend::{DType, ReadAt, Values},
    error::{Error, Result},
};

/// The number of bytes of the length before the header.
const PREFIX: usize = 8;
/// The longest header that is read, in bytes, as in the reference implementation.
const LONGEST_HEADER: u64 = 100_000_000;

/// A safetensors file whose header has been read and checked.
#[derive(Debug)]
pub(super) struct File {
    /// The file's name in messages.
    pub(super) path: String,
    /// The tensors in the order of their positions in the file.
    pub(super) tensors: Vec<Tensor>,
    /// The texts of the header's `__metadata__`.
    pub(super) metadata: BTreeMap<String, String>,
    stored: Stored,
}

/// The header's entry of one tensor.
#[derive(Debug)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// The range of its bytes in the file.
    range: Range<usize>,
}

impl Tensor {
    /// The number of bytes of its values.
    pub(super) fn bytes(&self) -> usize {
        self.range.len()
    }
}

impl File {
    /// Opens the file and checks its header: that it is complete, that every tensor has the bytes that its shape and
    /// type need, and that tensors follow one another, with neither holes nor overlaps, to the end of the file.
    pub(super) fn open(files: &ModelFiles, path: &str) -> Result<Self> {
        Self::of(files.open(path)?, files.path_of(path))
    }

    /// [`File::open`] for a file that is open; `path` is its name in messages.
    pub(super) fn of(stored: Stored, path: String) -> Result<Self> {
        let (tensors, metadata) =
            read_header(&stored).map_err(|error| error.context(format!("reading the safetensors file {path}")))?;
        Ok(Self { path, tensors, metadata, stored })
    }

    /// A tensor's values, row by row, little-endian, at any alignment. F64 values are rounded to f32 when they are
    /// read.
    pub(super) fn values(&self, tensor: &Tensor, dtype: DType) -> Values<'_> {
        if tensor.dtype == Dtype::F64 {
            return Values::Stored { dtype, bytes: tensor.bytes() / 2, start: tensor.range.start, file: self };
        }
        match self.stored.in_memory() {
            Some(bytes) => Values::Data { dtype, bytes: &bytes[tensor.range.clone()] },
            None => Values::Stored { dtype, bytes: tensor.range.len(), start: tensor.range.start, file: &self.stored },
        }
    }

    /// See [`Stored::check_unchanged`].
    pub(super) fn check_unchanged(&self) -> Result<()> {
        self.stored.check_unchanged()
    }
}

/// Reads F64 tensors as if they were f32: byte `i` of the converted values is at the tensor's start plus `i`.
impl ReadAt for File {
    fn read_at(&self, start: usize, to: &mut [u8]) -> Result<()> {
        let tensor = self.tensors.partition_point(|tensor| tensor.range.start <= start).saturating_sub(1);
        let first = self.tensors[tensor].range.start;
        let mut doubles = vec![0; 2 * to.len()];
        self.stored.read_at(first + 2 * (start - first), &mut doubles)?;
        for (to, double) in to.chunks_exact_mut(4).zip(doubles.as_chunks::<8>().0) {
            to.copy_from_slice(&(f64::from_le_bytes(*double) as f32).to_le_bytes());
        }
        Ok(())
    }
}

/// The tensors, ordered by their position in the file, and the metadata.
fn read_header(file: &Stored) -> Result<(Vec<Tensor>, BTreeMap<String, String>)> {
    let file_bytes = file.bytes();
    if file_bytes < PREFIX as u64 {
        return Err(Error::input("the file ends before its header").found(format!("{file_bytes} bytes")));
    }
    let mut prefix = [0; PREFIX];
    file.read_at(0, &mut prefix)?;
    let declared = u64::from_le_bytes(prefix);
    if declared > LONGEST_HEADER {
        return Err(Error::input(format!("the header may have {LONGEST_HEADER} bytes at most"))
            .found(format!("{declared} bytes"))
            .hint("this may not be a safetensors file at all"));
    }
    let header_len = declared as usize; // at most LONGEST_HEADER
    if declared > file_bytes - PREFIX as u64 {
        return Err(Error::input(format!("the header has {declared} bytes, and the file ends before that"))
            .found(format!("a file of {file_bytes} bytes"))
            .hint("was the download interrupted?"));
    }
    let mut header = vec![0; header_len];
    file.read_at(PREFIX, &mut header)?;
    let Header { entries, metadata } =
        serde_json::from_slice(&header).map_err(|error| Error::input("the header cannot be read").source(error))?;

    let data_start = PREFIX + header_len;
    let mut tensors =
        entries.into_iter().map(|(name, entry)| place(name, entry, data_start)).collect::<Result<Vec<_>>>()?;
    tensors.sort_by_key(|tensor| (tensor.range.start, tensor.range.end));
    let mut end = data_start;
    for tensor in &tensors {
        if tensor.range.start != end {
            let what = if tensor.range.start < end { "overlaps the tensor before it" } else { "follows a hole" };
            return Err(Error::input(format!(
                "`{}` {what}: it must begin at offset {}",
                tensor.name,
                end - data_start
            ))
            .found(format!("offset {}", tensor.range.start - data_start)));
        }
        end = tensor.range.end;
    }
    if end as u64 != file_bytes {
        let error = Error::input(format!("the tensors need a file of {end} bytes"))
            .found(format!("a file of {file_bytes} bytes"));
        return Err(if end as u64 > file_bytes { error.hint("was the download interrupted?") } else { error });
    }
    Ok((tensors, metadata))
}

/// Checks that one tensor's numbers agree.
fn place(name: String, entry: Entry, data_start: usize) -> Result<Tensor> {
    let [start, end] = entry.data_offsets;
    let elements = entry.shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
    let bits = elements.and_then(|elements| elements.checked_mul(entry.dtype.bitsize()));
    let Some(bits) = bits.filter(|bits| bits % 8 == 0) else {
        return Err(Error::input(format!("the shape of `{name}` is not possible")).found(format!("{:?}", entry.shape)));
    };
    if end.checked_sub(start) != Some(bits / 8) {
        let wanted = format!("`{name}`, {:?} of {}, needs {} bytes", entry.shape, entry.dtype, bits / 8);
        return Err(Error::input(wanted).found(format!("offsets {start} to {end}")));
    }
    let (Some(start), Some(end)) = (start.checked_add(data_start), end.checked_add(data_start)) else {
        return Err(
            Error::input(format!("`{name}` is beyond the end of any file")).found(format!("offsets {start} to {end}"))
        );
    };
    Ok(Tensor { name, dtype: entry.dtype, shape: entry.shape, range: start..end })
}

/// A tensor's entry in the header.
#[derive(Deserialize)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

/// The whole header. A duplicate name is an error, whereas a map would keep the last one.
struct Header {
    entries: Vec<(String, Entry)>,
    metadata: BTreeMap<String, String>,
}

/// The texts of an object; other values are left out, which the reference implementation does not allow.
fn texts(value: Value) -> BTreeMap<String, String> {
    let Value::Object(object) = value else { return BTreeMap::new() };
    let text = |(key, value)| match value {
        Value::String(text) => Some((key, text)),
        _ => None,
    };
    object.into_iter().filter_map(text).collect()
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
                let mut seen = std::collections::HashSet::new();
                let (mut entries, mut metadata) = (Vec::new(), BTreeMap::new());
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format!("`{name}` comes twice")));
                    }
                    if name == "__metadata__" {
                        metadata = texts(map.next_value()?);
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Header { entries, metadata })
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A file with this header and `data` bytes of data.
    pub(crate) fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn stored(bytes: Vec<u8>) -> Stored {
        Stored::embedded(bytes.leak())
    }

    #[test]
    fn reads_tensors_in_file_order_at_any_alignment() {
        let header = r#"{"b":{"dtype":"F32","shape":[1],"data_offsets":[6,10]},"__metadata__":{"format":"pt"},
            "a":{"dtype":"F16","shape":[3,1],"data_offsets":[0,6]},"empty":{"dtype":"F32","shape":[0,4],"data_offsets":[6,6]},
            "scalar":{"dtype":"BF16","shape":[],"data_offsets":[10,12]}}"#;
        let (tensors, metadata) = read_header(&stored(file(header, 12))).unwrap();
        assert_eq!(metadata.into_iter().collect::<Vec<_>>(), [("format".to_owned(), "pt".to_owned())]);
        let names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["a", "empty", "b", "scalar"]);
        assert_eq!(tensors[0].range, PREFIX + header.len()..PREFIX + header.len() + 6);
    }

    #[test]
    fn refuses_every_broken_header() {
        let t = |offsets: &str| format!(r#"{{"t":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}}}"#);
        let two = |a: &str, b: &str| {
            format!(
                r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":{a}}},"b":{{"dtype":"F32","shape":[2],"data_offsets":{b}}}}}"#
            )
        };
        let shape = |shape: &str| format!(r#"{{"t":{{"dtype":"F32","shape":{shape},"data_offsets":[0,8]}}}}"#);
        for (bytes, words) in [
            (vec![], "ends before its header"),
            (vec![1, 0, 0, 0], "ends before its header"),
            ((1_u64 << 60).to_le_bytes().to_vec(), "found: 1152921504606846976 bytes"),
            (u64::MAX.to_le_bytes().to_vec(), "at most"),
            (200_u64.to_le_bytes().to_vec(), "the file ends before that"),
            (file("", 0), "cannot be read"),
            (file("[]", 0), "an object of tensors"),
            (file("{\"t\"", 0), "cannot be read"),
            (file(r#"{"t":{}}"#, 0), "missing field"),
            (file(r#"{"t":{"dtype":"F33","shape":[],"data_offsets":[0,4]}}"#, 4), "F33"),
            (file(&t("[0,-8]"), 8), "cannot be read"),
            (file(&t("[0,8,9]"), 8), "cannot be read"),
            (file(&t("[0,18446744073709551616]"), 8), "cannot be read"),
            (file(&t("[0,4]"), 4), "`t`, [2] of F32, needs 8 bytes"),
            (file(&t("[8,0]"), 8), "needs 8 bytes"),
            (file(&t("[0,8]"), 7), "was the download interrupted?"),
            (file(&t("[0,8]"), 9), "the tensors need a file of"),
            (file(&t("[4,12]"), 12), "`t` follows a hole: it must begin at offset 0"),
            (file(&t("[18446744073709551607,18446744073709551615]"), 8), "is beyond the end of any file"),
            (file(&two("[0,8]", "[4,12]"), 12), "`b` overlaps the tensor before it: it must begin at offset 8"),
            (file(&two("[0,8]", "[0,8]"), 8), "overlaps"),
            (file(&two("[0,8]", "[12,20]"), 20), "`b` follows a hole"),
            (file(&two("[0,8]", "[8,16]").replace("\"b\"", "\"a\""), 16), "`a` comes twice"),
            (file(&shape("[9223372036854775807,3]"), 8), "is not possible"),
            (file(&shape("[4611686018427387904]"), 8), "is not possible"),
            (file(&shape("[2.5]"), 8), "cannot be read"),
            (file(&"[".repeat(100_000), 0), "cannot be read"),
        ] {
            let error = read_header(&stored(bytes)).unwrap_err().to_string();
            assert!(error.contains(words), "{error:?} lacks {words:?}");
        }
    }
}
