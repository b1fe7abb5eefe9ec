//! JPEG segments, WebP and PNG chunks, as far as EXIF data and the checks before decoding need them: where EXIF data is,
//! how it gets into a file, whether a file ends early, and whether a palette is damaged. Pixels are not decoded here.

use std::{
    io::{Read, Result, Seek, SeekFrom},
    ops::Range,
};

use super::exif;

/// The beginnings of files.
pub const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
pub const JPEG: &[u8] = b"\xff\xd8\xff";
const RIFF: &[u8] = b"RIFF";
const WEBP: &[u8] = b"WEBP";

/// The second bytes of JPEG markers; the first one is 0xff.
const APP0: u8 = 0xe0;
const APP1: u8 = 0xe1;
const START_OF_SCAN: u8 = 0xda;
const END_OF_IMAGE: u8 = 0xd9;
/// The most bytes of EXIF data in a JPEG segment, whose length counts its own two bytes and the prefix.
pub const MAX_JPEG_EXIF: usize = 0xffff - 2 - exif::PREFIX.len();
/// The most bytes of EXIF data that are read from a WebP.
const MAX_WEBP_EXIF: u64 = 16 << 20;

/// Whether a file that begins with these bytes is a WebP.
pub fn is_webp(bytes: &[u8]) -> bool {
    bytes.starts_with(RIFF) && bytes.get(8..12) == Some(WEBP)
}

/// EXIF data and its place in a file, with the segment's or chunk's own head.
pub struct Found {
    /// The TIFF structure, without a prefix.
    pub exif: Vec<u8>,
    /// The bytes of the segment or chunk in the file.
    pub place: Range<usize>,
}

/// Finds the EXIF data of a JPEG or WebP file without reading its pixels. `None` if there is none, or the file is
/// damaged before it.
pub fn find_exif(file: &mut (impl Read + Seek)) -> Option<Found> {
    let mut head = [0; 12];
    file.read_exact(&mut head).ok()?;
    if head.starts_with(JPEG) {
        file.seek(SeekFrom::Start(2)).ok()?;
        find_in_jpeg(file).ok()?
    } else if is_webp(&head) {
        find_in_webp(file).ok()?
    } else {
        None
    }
}

fn find_in_jpeg(file: &mut (impl Read + Seek)) -> Result<Option<Found>> {
    let mut at = 2;
    loop {
        let mut head = [0; 4];
        file.read_exact(&mut head)?;
        let [0xff, marker, high, low] = head else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        if marker == START_OF_SCAN || length < 2 {
            return Ok(None);
        }
        if marker == APP1 {
            let mut data = vec![0; length - 2];
            file.read_exact(&mut data)?;
            if let Some(exif) = data.strip_prefix(exif::PREFIX) {
                return Ok(Some(Found { exif: exif.to_vec(), place: at..at + 2 + length }));
            }
        } else {
            file.seek_relative(length as i64 - 2)?;
        }
        at += 2 + length;
    }
}

fn find_in_webp(file: &mut (impl Read + Seek)) -> Result<Option<Found>> {
    let mut at = 12;
    loop {
        let mut head = [0; 8];
        file.read_exact(&mut head)?;
        let [kind @ .., a, b, c, d] = head;
        let length = u64::from(u32::from_le_bytes([a, b, c, d]));
        let padded = length.next_multiple_of(2);
        if kind == *b"EXIF" {
            let mut data = Vec::new();
            file.take(length.min(MAX_WEBP_EXIF)).read_to_end(&mut data)?;
            let exif = data.strip_prefix(exif::PREFIX).unwrap_or(&data).to_vec();
            return Ok(Some(Found { exif, place: at..at + 8 + padded as usize }));
        }
        file.seek_relative(padded as i64)?;
        at += 8 + padded as usize;
    }
}

/// Puts EXIF data into a JPEG file, behind the JFIF segment with which it begins.
pub fn jpeg_with_exif(plain: &[u8], exif: &[u8]) -> Vec<u8> {
    assert!(exif.len() <= MAX_JPEG_EXIF, "longer data is rejected before");
    let at = match plain {
        [0xff, 0xd8, 0xff, APP0, high, low, ..] => 4 + usize::from(u16::from_be_bytes([*high, *low])),
        _ => 2,
    };
    let at = at.min(plain.len());
    let length = (2 + exif::PREFIX.len() + exif.len()) as u16;
    [&plain[..at], &[0xff, APP1], &length.to_be_bytes(), exif::PREFIX, exif, &plain[at..]].concat()
}

/// Puts EXIF data into a lossless WebP file that has nothing but pixels. `None` if it is another file.
pub fn webp_with_exif(plain: &[u8], exif: &[u8]) -> Option<Vec<u8>> {
    let chunk = plain.get(12..).filter(|chunk| chunk.starts_with(b"VP8L"))?;
    // A byte of signature, then 14 bits each for width and height, less 1.
    let size = u32::from_le_bytes(chunk.get(9..13)?.try_into().ok()?);
    let (width, height) = (size & 0x3fff, size >> 14 & 0x3fff);
    let mut webp = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\x08\0\0\0".to_vec(); // the bit 8 announces EXIF data
    webp.extend(&width.to_le_bytes()[..3]);
    webp.extend(&height.to_le_bytes()[..3]);
    webp.extend(chunk);
    webp.extend(b"EXIF");
    webp.extend(u32::try_from(exif.len()).ok()?.to_le_bytes());
    webp.extend(exif);
    if webp.len() % 2 == 1 {
        webp.push(0);
    }
    let length = u32::try_from(webp.len() - 8).ok()?;
    webp[4..8].copy_from_slice(&length.to_le_bytes());
    Some(webp)
}

/// The file from which [`jpeg_with_exif`] or [`webp_with_exif`] made this one.
pub fn without_exif(bytes: &[u8], place: &Range<usize>) -> Option<Vec<u8>> {
    if !is_webp(bytes) {
        return Some([bytes.get(..place.start)?, bytes.get(place.end..)?].concat());
    }
    /// The bytes before the pixels: of the file and of the VP8X chunk.
    const BEFORE: usize = 12 + 18;
    let chunk = bytes.get(BEFORE..place.start)?;
    let length = u32::try_from(4 + chunk.len()).ok()?;
    Some([RIFF, &length.to_le_bytes(), WEBP, chunk].concat())
}

/// Whether a WebP file is as long as it says.
pub fn webp_has_end(bytes: &[u8]) -> bool {
    let length = bytes.get(4..8).map(|length| u32::from_le_bytes(length.try_into().expect("these are four bytes")));
    length.is_some_and(|length| bytes.len() as u64 >= 8 + u64::from(length))
}

/// Whether a JPEG file has its end. Decoders fill what is missing with grey.
pub fn jpeg_has_end(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        let Some([0xff, marker]) = bytes.get(at..at + 2) else { return false };
        at += 2;
        match *marker {
            0xff => at -= 1, // fill bytes before a marker
            END_OF_IMAGE => return true,
            0x01 | 0xd0..=0xd7 => {} // markers without a length
            _ => {
                let Some([high, low]) = bytes.get(at..at + 2) else { return false };
                at += usize::from(u16::from_be_bytes([*high, *low]));
                if *marker == START_OF_SCAN {
                    let is_marker = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0 | 0xd0..=0xd7 | 0xff);
                    match bytes.get(at..).and_then(|scan| scan.windows(2).position(is_marker)) {
                        Some(next) => at += next,
                        None => return false,
                    }
                }
            }
        }
    }
}

/// The length of a PNG file's palette chunk that ends within a colour, if it has one. The `png` crate up to 0.18.1 panics
/// on it (image-png's issue 694).
pub fn damaged_png_palette(bytes: &[u8]) -> Option<u32> {
    let mut chunks = bytes.get(PNG.len()..)?;
    loop {
        let (head, rest) = chunks.split_first_chunk::<8>()?;
        let [a, b, c, d, kind @ ..] = *head;
        let length = u32::from_be_bytes([a, b, c, d]);
        if kind == *b"PLTE" && length % 3 != 0 {
            return Some(length);
        }
        chunks = rest.get(length as usize..)?.get(4..)?; // the checksum follows
    }
}
