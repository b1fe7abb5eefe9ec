//! The safetensors format: a JSON header followed by plain tensors. Every number in the header is checked before use.
//!
//! The file has the header's length as a little-endian `u64`, the header, and the tensors. Offsets count from the
//! header's end.

use std::{collections::HashMap, fmt, ops::Range, sync::Arc};

use half::f16;
use safetensors::Dtype;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};

use super::files::{ModelFiles, Stored};
use crate::{
    backend::{DType, ReadAt, Values},
    error::{Error, Result},
};

/// The number of bytes of the length before the header.
const PREFIX: usize = 8;
/// The longest header that is read, in bytes, as in the reference implementation.
const LONGEST_HEADER: u64 = 100_000_000;

/// Ends of the names of pickle files.
const PICKLES: [&str; 4] = [".ckpt", ".pt", ".pth", ".bin"];

/// A safetensors file whose header has been read and checked.
#[derive(Debug)]
pub(super) struct File {
    /// The file's name in messages.
    pub(super) path: String,
    /// The tensors in the order of their positions in the file.
    pub(super) tensors: Vec<Tensor>,
    /// The texts of the header's `__metadata__`.
    pub(super) metadata: HashMap<String, String>,
    stored: Arc<Stored>,
}

/// The header's entry of one tensor.
#[derive(Debug)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// The range of its bytes in the file.
    range: Range<usize>,
    stored: Arc<Stored>,
}

impl Tensor {
    /// The number of bytes of its values.
    pub(super) fn bytes(&self) -> usize {
        self.range.len()
    }

    /// The type in which the values are read; `None` if they are no floats. F64 is rounded to f32, as in the reference,
    /// and floats of 8 bits are widened to f16, which has all their values.
    pub(super) fn read_dtype(&self) -> Option<DType> {
        match self.dtype {
            Dtype::F32 | Dtype::F64 => Some(DType::F32),
            Dtype::F16 | Dtype::F8_E4M3 | Dtype::F8_E5M2 => Some(DType::F16),
            Dtype::BF16 => Some(DType::BF16),
            _ => None,
        }
    }

    /// The values of `part` of the tensor's `parts` equal ranges of rows, row by row, little-endian, at any alignment,
    /// in the type `dtype`, which is [`Tensor::read_dtype`].
    pub(super) fn values(&self, dtype: DType, part: usize, parts: usize) -> Values<'_> {
        let bytes = self.range.len() * 8 / self.dtype.bitsize() * dtype.size() / parts;
        let start = part * bytes;
        match self.stored.in_memory() {
            Some(file) if bytes * parts == self.range.len() => {
                Values::Data { dtype, bytes: &file[self.range.clone()][start..start + bytes] }
            }
            _ => Values::Stored { dtype, bytes, start, file: self },
        }
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
        let stored = Arc::new(stored);
        let (tensors, metadata) = read_header(&stored).map_err(|error| {
            let is_named_so = PICKLES.iter().any(|end| path.ends_with(end));
            let error = if is_named_so { pickle() } else { error };
            error.context(format!("reading the safetensors file {path}"))
        })?;
        Ok(Self { path, tensors, metadata, stored })
    }

    /// See [`Stored::check_unchanged`].
    pub(super) fn check_unchanged(&self) -> Result<()> {
        self.stored.check_unchanged()
    }
}

/// Reads the values in the type [`Tensor::read_dtype`]; positions count from the first value. Both ends of what is read
/// are at whole values.
impl ReadAt for Tensor {
    fn read_at(&self, start: usize, to: &mut [u8]) -> Result<()> {
        let widen = match self.dtype {
            Dtype::F64 => {
                let mut doubles = vec![0; 2 * to.len()];
                self.stored.read_at(self.range.start + 2 * start, &mut doubles)?;
                for (to, double) in to.as_chunks_mut::<4>().0.iter_mut().zip(doubles.as_chunks::<8>().0) {
                    *to = (f64::from_le_bytes(*double) as f32).to_le_bytes();
                }
                return Ok(());
            }
            Dtype::F8_E4M3 => e4m3,
            Dtype::F8_E5M2 => e5m2,
            _ => return self.stored.read_at(self.range.start + start, to),
        };
        let mut bytes = vec![0; to.len() / 2];
        self.stored.read_at(self.range.start + start / 2, &mut bytes)?;
        for (to, byte) in to.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
            *to = widen(byte).to_le_bytes();
        }
        Ok(())
    }
}

/// The value of a float with 4 bits of exponent (bias 7) and 3 of mantissa, without infinities. Micikevicius et al.
/// 2022.
fn e4m3(byte: u8) -> f16 {
    let (sign, exponent, mantissa) = (u16::from(byte >> 7) << 15, u16::from(byte >> 3 & 15), u16::from(byte & 7));
    match (exponent, mantissa) {
        (15, 7) => f16::from_bits(sign | f16::NAN.to_bits()),
        (0, _) => f16::from_bits(sign | f16::from_f32(f32::from(mantissa) / 512.0).to_bits()),
        _ => f16::from_bits(sign | (exponent + 8) << 10 | mantissa << 7),
    }
}

/// The value of a float with 5 bits of exponent and 2 of mantissa: an f16 without its lower byte.
fn e5m2(byte: u8) -> f16 {
    f16::from_bits(u16::from(byte) << 8)
}

/// The error for a file in another format, known by its first bytes; `None` if it may be a safetensors file.
///
/// A pickle of protocol 2 and later begins with the byte 0x80 and the protocol, and newer versions of torch put pickles
/// into zip archives. The length of a header may begin with the same bytes, but then the header follows.
fn other_format(start: &[u8]) -> Option<Error> {
    match start {
        [.., b'{'] if start.len() == PREFIX + 1 => None,
        [b'P', b'K', 3, 4, ..] | [0x80, 2..=5, ..] => Some(pickle()),
        [b'G', b'G', b'U', b'F', ..] => {
            Some(Error::input("this is a GGUF file, which sdshard does not read").hint("the same model as safetensors"))
        }
        _ => None,
    }
}

/// The error for a pickle file.
pub(super) fn pickle() -> Error {
    Error::input("this is a pickle file, and sdshard never reads those: loading one can run code").hint(
        "convert it once with a tool that you trust, for example the checkpoint merger of a web UI, or in Python: \
         safetensors.torch.save_file of what torch.load(.., weights_only=True) returns; then use the .safetensors file",
    )
}

/// The tensors, ordered by their position in the file, and the metadata.
fn read_header(file: &Arc<Stored>) -> Result<(Vec<Tensor>, HashMap<String, String>)> {
    let file_bytes = file.bytes();
    let mut start = [0; PREFIX + 1];
    let start = &mut start[..file_bytes.min(PREFIX as u64 + 1) as usize];
    file.read_at(0, start)?;
    if let Some(error) = other_format(start) {
        return Err(error);
    }
    let Some(prefix) = start.first_chunk() else {
        return Err(Error::input("the file ends before its header").found(format!("{file_bytes} bytes")));
    };
    let declared = u64::from_le_bytes(*prefix);
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
        entries.into_iter().map(|(name, entry)| place(name, entry, data_start, file)).collect::<Result<Vec<_>>>()?;
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
fn place(name: String, entry: Entry, data_start: usize, file: &Arc<Stored>) -> Result<Tensor> {
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
    Ok(Tensor { name, dtype: entry.dtype, shape: entry.shape, range: start..end, stored: file.clone() })
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
    /// Texts alone: other values are ignored.
    metadata: HashMap<String, String>,
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
                let (mut entries, mut metadata) = (Vec::new(), HashMap::new());
                while let Some(name) = map.next_key::<String>()? {
                    if !seen.insert(name.clone()) {
                        return Err(serde::de::Error::custom(format!("`{name}` comes twice")));
                    }
                    if name == "__metadata__" {
                        if let serde_json::Value::Object(values) = map.next_value()? {
                            let text = |(key, value)| match value {
                                serde_json::Value::String(text) => Some((key, text)),
                                _ => None,
                            };
                            metadata.extend(values.into_iter().filter_map(text));
                        }
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

    fn stored(bytes: Vec<u8>) -> Arc<Stored> {
        Arc::new(Stored::in_memory_of(bytes))
    }

    #[test]
    fn reads_tensors_in_file_order_at_any_alignment() {
        let header = r#"{"b":{"dtype":"F32","shape":[1],"data_offsets":[6,10]},"__metadata__":{"format":"pt","n":1},
            "a":{"dtype":"F16","shape":[3,1],"data_offsets":[0,6]},"empty":{"dtype":"F32","shape":[0,4],"data_offsets":[6,6]},
            "scalar":{"dtype":"BF16","shape":[],"data_offsets":[10,12]}}"#;
        let (tensors, metadata) = read_header(&stored(file(header, 12))).unwrap();
        assert_eq!(metadata, HashMap::from([("format".to_owned(), "pt".to_owned())]));
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

    #[test]
    fn a_pickle_is_known_by_its_first_bytes_and_never_read() {
        for bytes in [
            &b"PK\x03\x04\x00\x00\x08\x08\x00\x00archive/data.pkl"[..], // torch's zip archive
            b"PK\x03\x04",
            b"\x80\x02}q\x00.", // protocol 2, an empty dictionary
            b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", // torch's older files
            b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00.",
        ] {
            let error = read_header(&stored(bytes.to_vec())).unwrap_err().to_string();
            assert!(error.contains("pickle") && error.contains("convert it once"), "{bytes:?}: {error}");
        }
        let error = read_header(&stored(b"GGUF\x03\x00\x00\x00".to_vec())).unwrap_err().to_string();
        assert!(error.contains("GGUF"), "{error}");
        // The length of this header has the bytes 0x80 and 2.
        let header = format!("{{{}}}", " ".repeat(0x280 - 2));
        assert!(read_header(&stored(file(&header, 0))).unwrap().0.is_empty());
    }

    /// The value of a float of 8 bits by its definition.
    fn defined(byte: u8, mantissa_bits: i32, bias: i32) -> f64 {
        let (exponent, mantissa) =
            (i32::from(byte & 0x7f) >> mantissa_bits, i32::from(byte) & ((1 << mantissa_bits) - 1));
        let (scale, one) =
            (2f64.powi(exponent.max(1) - bias - mantissa_bits), i32::from(exponent > 0) << mantissa_bits);
        f64::from(one + mantissa) * scale * if byte > 127 { -1.0 } else { 1.0 }
    }

    #[test]
    fn floats_of_8_bits_are_widened_exactly() {
        for byte in 0..=255_u8 {
            let (short, long) = (e4m3(byte).to_f64(), e5m2(byte).to_f64());
            match byte & 0x7f {
                0x7f => assert!(short.is_nan(), "{byte}"),
                _ => assert_eq!(short.to_bits(), defined(byte, 3, 7).to_bits(), "{byte:#x}"),
            }
            match byte & 0x7f {
                0x7c => assert_eq!(long, if byte > 127 { f64::NEG_INFINITY } else { f64::INFINITY }),
                0x7d..=0x7f => assert!(long.is_nan(), "{byte}"),
                _ => assert_eq!(long.to_bits(), defined(byte, 2, 15).to_bits(), "{byte:#x}"),
            }
        }
        let values = [(0x38, 1.0), (0x40, 2.0), (0xb8, -1.0), (0x01, 0.001_953_125), (0x7e, 448.0)];
        for (byte, value) in values {
            assert_eq!(e4m3(byte).to_f32(), value);
        }
        assert_eq!((e5m2(0x7b).to_f32(), e5m2(0x01).to_f32()), (57_344.0, 2f32.powi(-16)));
    }
}
