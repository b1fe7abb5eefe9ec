//! EXIF: the settings in JPEG and WebP files. The structure is that of a TIFF file: directories of entries, each with a
//! tag, a type, a count and a value, or the place of a longer one.

/// What stands before the TIFF structure in a JPEG, and by some programs also in a WebP.
pub const PREFIX: &[u8] = b"Exif\0\0";

/// The tag of a text about the picture, which has our JSON after [`JSON_PREFIX`].
const IMAGE_DESCRIPTION: u16 = 0x010e;
/// Tags in which ComfyUI writes its graphs in WebP files.
const MAKE: u16 = 0x010f;
const MODEL: u16 = 0x0110;
/// The tag with the place of the second directory.
const EXIF_DIRECTORY: u16 = 0x8769;
/// The tag in which web UIs write their settings.
const USER_COMMENT: u16 = 0x9286;
/// The tag of 32 hexadecimal digits that identify the picture.
const UNIQUE_ID: u16 = 0xa420;

/// The number of digits of [`Exif::id`].
pub const ID_DIGITS: usize = 32;

/// What our JSON begins with, to distinguish it from descriptions by people.
const JSON_PREFIX: &str = "sdshard:";
/// Types of values and the bytes of one element.
const ASCII: u16 = 2;
const LONG: u16 = 4;
const UNDEFINED: u16 = 7;
/// The code before a `UserComment` in UTF-16.
const UNICODE: &[u8] = b"UNICODE\0";

/// Encodes a TIFF structure in big-endian order with the settings as web UIs write them (`UserComment`, UTF-16), with
/// our JSON (`ImageDescription`, ASCII), and with [`ID_DIGITS`] hexadecimal digits that identify the picture's data.
pub fn encode(parameters: &str, json: &str, id: &str) -> Vec<u8> {
    let comment = UNICODE.iter().copied().chain(parameters.encode_utf16().flat_map(u16::to_be_bytes)).collect();
    let with_nul = |text: &str| -> Vec<u8> { text.bytes().chain([0]).collect() };
    let description = with_nul(&format!("{JSON_PREFIX}{}", ascii_json(json)));
    // Both directories have two entries of 12 bytes, a count before them and the place of the next one behind them.
    const DIRECTORY: u32 = 2 + 2 * 12 + 4;
    let (first, second) = (8, 8 + DIRECTORY);
    let values: [Vec<u8>; 3] = [description, comment, with_nul(id)];
    let mut places = Vec::new();
    let mut end = second + DIRECTORY;
    for value in &values {
        places.push(end);
        end += (value.len() as u32).next_multiple_of(2);
    }
    let mut bytes = [&b"MM\0\x2a"[..], &u32::to_be_bytes(first)].concat();
    let entry = |tag: u16, kind: u16, count: usize, value: u32| {
        [&tag.to_be_bytes()[..], &kind.to_be_bytes(), &(count as u32).to_be_bytes(), &value.to_be_bytes()].concat()
    };
    for entries in [
        [entry(IMAGE_DESCRIPTION, ASCII, values[0].len(), places[0]), entry(EXIF_DIRECTORY, LONG, 1, second)],
        [
            entry(USER_COMMENT, UNDEFINED, values[1].len(), places[1]),
            entry(UNIQUE_ID, ASCII, values[2].len(), places[2]),
        ],
    ] {
        bytes.extend(2_u16.to_be_bytes());
        bytes.extend(entries.concat());
        bytes.extend([0; 4]);
    }
    for value in values {
        bytes.extend(value);
        if bytes.len() % 2 == 1 {
            bytes.push(0);
        }
    }
    bytes
}

/// JSON in which all characters beyond ASCII are escaped; they can only be in strings.
fn ascii_json(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c.is_ascii() {
            true => text.push(c),
            false => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| text += &format!("\\u{unit:04x}")),
        }
    }
    text
}

/// The texts of a picture's EXIF data.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Exif {
    /// Our JSON.
    pub json: Option<String>,
    /// The `UserComment`: in pictures of web UIs, their settings.
    pub comment: Option<String>,
    /// The identity of the picture's data, in files that sdshard wrote.
    pub id: Option<String>,
    /// Whether ComfyUI has written a graph.
    pub has_comfyui_graph: bool,
}

/// Reads EXIF data with or without [`PREFIX`]. Entries that are damaged are left out.
pub fn read(bytes: &[u8]) -> Exif {
    let tiff = bytes.strip_prefix(PREFIX).unwrap_or(bytes);
    let mut exif = Exif::default();
    let is_big_endian = match tiff.get(..4) {
        Some(b"MM\0\x2a") => true,
        Some(b"II\x2a\0") => false,
        _ => return exif,
    };
    let tiff = Tiff { bytes: tiff, is_big_endian };
    let text = |value: &[u8]| {
        let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
        String::from_utf8_lossy(&value[..end]).into_owned()
    };
    let first = tiff.u32_at(4).map(|at| tiff.entries(at)).unwrap_or_default();
    let second = first.iter().find(|entry| entry.tag == EXIF_DIRECTORY).and_then(|entry| tiff.u32_at(entry.at + 8));
    for entry in first.iter().chain(&second.map(|at| tiff.entries(at)).unwrap_or_default()) {
        let Some(value) = tiff.value(entry) else { continue };
        match entry.tag {
            IMAGE_DESCRIPTION => exif.json = text(value).strip_prefix(JSON_PREFIX).map(str::to_string),
            MAKE | MODEL => {
                let is_graph = value.starts_with(b"prompt:{") || value.starts_with(b"workflow:{");
                exif.has_comfyui_graph = exif.has_comfyui_graph || is_graph;
            }
            USER_COMMENT => exif.comment = Some(user_comment(value)),
            UNIQUE_ID => exif.id = Some(text(value)),
            _ => {}
        }
    }
    exif
}

/// The TIFF structure. Offsets are from its beginning.
struct Tiff<'a> {
    bytes: &'a [u8],
    is_big_endian: bool,
}

/// An entry of a directory.
struct Entry {
    tag: u16,
    /// Its place.
    at: usize,
}

impl Tiff<'_> {
    fn u16_at(&self, at: usize) -> Option<u16> {
        let bytes = self.bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(if self.is_big_endian { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    }

    fn u32_at(&self, at: usize) -> Option<usize> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        Some(if self.is_big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) } as usize)
    }

    /// The entries of the directory at `at`.
    fn entries(&self, at: usize) -> Vec<Entry> {
        let count = self.u16_at(at).map_or(0, usize::from);
        let entry = |i| {
            let at = at + 2 + 12 * i;
            self.u32_at(at + 8)?; // the end of the entry
            Some(Entry { tag: self.u16_at(at)?, at })
        };
        (0..count).map_while(entry).collect()
    }

    /// The bytes of a value of text or of the type `UNDEFINED`.
    fn value(&self, entry: &Entry) -> Option<&[u8]> {
        let (kind, count) = (self.u16_at(entry.at + 2)?, self.u32_at(entry.at + 4)?);
        if !matches!(kind, 1 | ASCII | UNDEFINED) {
            return None;
        }
        let at = if count <= 4 { entry.at + 8 } else { self.u32_at(entry.at + 8)? };
        self.bytes.get(at..at.checked_add(count)?)
    }
}

/// The text of a `UserComment`: eight bytes with the name of an encoding, and the text.
///
/// Programs disagree about what `UNICODE` means: UTF-16 in big-endian order whatever the order of the file, in the
/// order of the file, or UTF-8. The text itself decides.
fn user_comment(value: &[u8]) -> String {
    let text = match value.split_at_checked(8) {
        Some((UNICODE, text)) => unicode(text),
        Some((b"ASCII\0\0\0" | b"JIS\0\0\0\0\0" | b"\0\0\0\0\0\0\0\0", text)) => {
            String::from_utf8_lossy(text).into_owned()
        }
        _ => String::from_utf8_lossy(value).into_owned(),
    };
    text.trim_end_matches('\0').to_string()
}

fn unicode(bytes: &[u8]) -> String {
    /// The number of UTF-16 units whose zero bytes are counted.
    const LOOKED_AT: usize = 64;
    let utf16 = |bytes: &[u8], big_endian: bool| -> Result<String, String> {
        let unit = |pair: &[u8; 2]| if big_endian { u16::from_be_bytes(*pair) } else { u16::from_le_bytes(*pair) };
        let units: Vec<u16> = bytes.as_chunks().0.iter().map(unit).collect();
        String::from_utf16(&units).map_err(|_| String::from_utf16_lossy(&units))
    };
    let either = |text: Result<String, String>| text.unwrap_or_else(|lossy| lossy);
    match bytes {
        [0xfe, 0xff, rest @ ..] => return either(utf16(rest, true)),
        [0xff, 0xfe, rest @ ..] => return either(utf16(rest, false)),
        _ => {}
    }
    // Text in Latin letters has a zero byte in most units.
    let pairs = &bytes.as_chunks::<2>().0[..(bytes.len() / 2).min(LOOKED_AT)];
    let zeros = |byte: usize| pairs.iter().filter(|pair| pair[byte] == 0).count();
    if zeros(0) != zeros(1) {
        return either(utf16(bytes, zeros(0) > zeros(1)));
    }
    if let Ok(text) = std::str::from_utf8(bytes).map(str::to_string)
        && zeros(0) == 0
    {
        return text;
    }
    let [big, little] = [utf16(bytes, true), utf16(bytes, false)];
    let has_settings = |text: &Result<String, String>| text.as_ref().unwrap_or_else(|lossy| lossy).contains("Steps");
    let is_little = match (has_settings(&big), has_settings(&little)) {
        (false, true) => true,
        (true, _) => false,
        (false, false) => big.is_err() && little.is_ok(),
    };
    either(if is_little { little } else { big })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMETERS: &str = "ein Füchslein 🦊, \"rot\"\nSteps: 3, Sampler: Euler, Seed: 1";

    /// A TIFF structure whose `UserComment` has these bytes.
    fn with_comment(is_big_endian: bool, comment: &[u8]) -> Vec<u8> {
        let u16s = |value: u16| if is_big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        let u32s = |value: u32| if is_big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        let entry = |tag: u16, kind: u16, count: u32, value: u32| {
            [&u16s(tag)[..], &u16s(kind), &u32s(count), &u32s(value)].concat()
        };
        let order = if is_big_endian { b"MM" } else { b"II" };
        let directory = |entry: Vec<u8>| [&u16s(1)[..], &entry, &[0; 4]].concat();
        [
            &order[..],
            &u16s(42),
            &u32s(8),
            &directory(entry(EXIF_DIRECTORY, LONG, 1, 26)),
            &directory(entry(USER_COMMENT, UNDEFINED, comment.len() as u32, 44)),
            comment,
        ]
        .concat()
    }

    #[test]
    fn what_is_written_is_read() {
        let json = r#"{"prompt":"ein Füchslein 🦊\n\u0000","seed":1}"#;
        let exif = encode(PARAMETERS, json, &"ab".repeat(16));
        for bytes in [exif.clone(), [PREFIX, &exif].concat()] {
            let read = read(&bytes);
            assert_eq!(read.comment.as_deref(), Some(PARAMETERS));
            assert_eq!(read.id, Some("ab".repeat(16)));
            let written = read.json.unwrap();
            assert!(written.is_ascii(), "{written}");
            let value = |json: &str| serde_json::from_str::<serde_json::Value>(json).unwrap();
            assert_eq!(value(&written), value(json));
        }
    }

    #[test]
    fn the_comment_is_big_endian_utf_16_as_web_uis_write_it() {
        let exif = encode("fü", "{}", "");
        assert!(exif.starts_with(b"MM\0\x2a\0\0\0\x08"), "{exif:?}");
        let at = exif.windows(8).position(|bytes| bytes == UNICODE).unwrap();
        assert_eq!(exif[at + 8..at + 12], [0, b'f', 0, 0xfc]);
    }

    #[test]
    fn comments_of_all_programs_are_read() {
        let utf16 = |to_bytes: fn(u16) -> [u8; 2]| PARAMETERS.encode_utf16().flat_map(to_bytes).collect::<Vec<_>>();
        let [big, little] = [utf16(u16::to_be_bytes), utf16(u16::to_le_bytes)];
        for is_big_endian in [true, false] {
            for (what, code, text) in [
                ("UTF-16 BE", UNICODE, big.clone()),
                ("UTF-16 LE", UNICODE, little.clone()),
                ("with BOM", UNICODE, [&[0xfe, 0xff][..], &big].concat()),
                ("with BOM", UNICODE, [&[0xff, 0xfe][..], &little].concat()),
                ("UTF-8", UNICODE, PARAMETERS.into()),
                ("undefined", &[0; 8][..], PARAMETERS.into()),
                ("ASCII", b"ASCII\0\0\0", PARAMETERS.into()),
            ] {
                let exif = read(&with_comment(is_big_endian, &[code, &text].concat()));
                assert_eq!(exif.comment.as_deref(), Some(PARAMETERS), "{what}, {is_big_endian}");
            }
            let bare = read(&with_comment(is_big_endian, PARAMETERS.as_bytes()));
            assert_eq!(bare.comment.as_deref(), Some(PARAMETERS), "without a code");
        }
        // Without a zero byte the order is known by what is said, or by what is text at all.
        let chinese: Vec<u16> = "雪中的红色狐狸，大师作品".encode_utf16().collect();
        let steps: Vec<u16> = "狐狸狐狸狐狸狐狸Steps".encode_utf16().collect();
        for units in [&chinese, &steps] {
            let text = String::from_utf16(units).unwrap();
            let bytes: Vec<u8> = units.iter().flat_map(|unit| unit.to_be_bytes()).collect();
            let exif = read(&with_comment(true, &[UNICODE, &bytes].concat()));
            assert_eq!(exif.comment, Some(text));
        }
    }

    #[test]
    fn damaged_data_is_left_out() {
        let whole = encode(PARAMETERS, "{}", "ab");
        for length in 0..whole.len() {
            read(&whole[..length]);
        }
        for at in 0..100.min(whole.len()) {
            for byte in [0, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = byte;
                read(&damaged);
            }
        }
        assert_eq!(read(b"MM\0\x2a\0\0\0\x08\xff\xff"), Exif::default());
    }
}
