//! Pictures of other programs: PNG, JPEG and WebP files as 8-bit RGB, as `diffusers.utils.load_image` reads them.

use std::{io::Cursor, path::Path};

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use super::{container, image::Image};
use crate::{
    error::{Error, Result},
    input,
};

/// The most pixels of a picture that is read. While it is read, a pixel has up to 8 bytes, and 3 after that.
const MAX_PIXELS: u64 = 64 << 20;
/// What a decoder may need for a pixel beside its result, in bytes.
const WORKING_BYTES: u64 = 16;

impl Image {
    /// Reads a PNG, JPEG or WebP file as diffusers' `load_image` does: turned as its EXIF data says, then as Pillow's
    /// `convert("RGB")` gives it. So alpha is left out, of 16 bits the upper eight are taken (except in grey pictures
    /// without alpha, where values above 255 are 255), and of an animation the first picture is taken. Colour profiles
    /// are not applied.
    ///
    /// # Errors
    /// If it is no regular file of at most 64 MiB, no such picture, not whole, or has more than 67,108,864 pixels.
    pub fn read(path: &Path) -> Result<Self> {
        let doing = format!("reading the picture {}", path.display());
        let bytes = input::read(path).map_err(|error| Error::input(&doing).source(error))?;
        Self::decode(&bytes, MAX_PIXELS).map_err(|error| error.context(doing))
    }

    /// Decodes the bytes of a PNG, JPEG or WebP file with at most `max_pixels` pixels, as [`read`](Image::read).
    ///
    /// # Errors
    /// If it is no such picture, not whole, or larger. The size is checked before memory for it is allocated.
    pub fn decode(bytes: &[u8], max_pixels: u64) -> Result<Self> {
        let format = match bytes {
            _ if bytes.starts_with(container::PNG) => ImageFormat::Png,
            _ if bytes.starts_with(container::JPEG) => ImageFormat::Jpeg,
            _ if container::is_webp(bytes) => ImageFormat::WebP,
            _ => {
                return Err(Error::input("this is no picture that can be read")
                    .found(kind(bytes))
                    .hint("a PNG, JPEG or WebP file"));
            }
        };
        let refuse = |error: image::ImageError| {
            Error::input(format!("the {} file is damaged or not whole", name(format))).source(error)
        };
        let has_end = match format {
            ImageFormat::Jpeg => container::jpeg_has_end(bytes),
            ImageFormat::WebP => container::webp_has_end(bytes),
            _ => true, // the decoder finds it
        };
        if !has_end {
            let format = name(format);
            return Err(Error::input(format!("the {format} file is damaged or not whole: its end is missing")));
        }
        if format == ImageFormat::Png
            && let Some(length) = container::damaged_png_palette(bytes)
        {
            return Err(Error::input("the PNG file is damaged or not whole: its palette ends within a colour")
                .found(format!("a PLTE chunk of {length} bytes, which three bytes for each colour do not fill")));
        }
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(max_pixels.saturating_mul(WORKING_BYTES));
        reader.limits(limits);
        let mut decoder = reader.into_decoder().map_err(refuse)?;
        let (width, height) = decoder.dimensions();
        if u64::from(width) * u64::from(height) > max_pixels {
            return Err(Error::input(format!("a picture may have at most {max_pixels} pixels"))
                .found(format!("{width}x{height}"))
                .hint("a smaller copy of it"));
        }
        if width == 0 || height == 0 {
            return Err(Error::input("the picture has no pixels").found(format!("{width}x{height}")));
        }
        // Depth and type of colours in a PNG's header, which the decoder does not tell.
        let is_grey16 = format == ImageFormat::Png && bytes.get(24..26) == Some(&[16, 0]);
        let orientation = decoder.orientation().map_err(refuse)?;
        let picture = DynamicImage::from_decoder(decoder).map_err(refuse)?;
        let mut picture = DynamicImage::ImageRgb8(rgb(picture, is_grey16));
        picture.apply_orientation(orientation);
        Ok(Self {
            width: picture.width() as usize,
            height: picture.height() as usize,
            rgb: picture.into_rgb8().into_raw(),
        })
    }
}

/// Pillow's `convert("RGB")`. `is_grey16` says that the file has 16 bits of grey and no alpha, perhaps a transparent
/// colour.
fn rgb(picture: DynamicImage, is_grey16: bool) -> image::RgbImage {
    let (width, height) = (picture.width(), picture.height());
    let upper = |values: Vec<u16>| values.into_iter().map(|value| (value >> 8) as u8).collect::<Vec<_>>();
    let cut_off = |values: Vec<u16>| values.into_iter().map(|value| value.min(255) as u8).collect::<Vec<_>>();
    let grey = |values: Vec<u8>, channels: usize| values.iter().step_by(channels).flat_map(|v| [*v; 3]).collect();
    let colours = |values: Vec<u8>| values.as_chunks::<4>().0.iter().flat_map(|[r, g, b, _]| [*r, *g, *b]).collect();
    let values = match picture {
        DynamicImage::ImageRgb8(picture) => return picture,
        DynamicImage::ImageRgba8(picture) => colours(picture.into_raw()),
        DynamicImage::ImageLuma8(picture) => grey(picture.into_raw(), 1),
        DynamicImage::ImageLumaA8(picture) => grey(picture.into_raw(), 2),
        DynamicImage::ImageLuma16(picture) => grey(cut_off(picture.into_raw()), 1),
        DynamicImage::ImageLumaA16(picture) if is_grey16 => grey(cut_off(picture.into_raw()), 2),
        DynamicImage::ImageLumaA16(picture) => grey(upper(picture.into_raw()), 2),
        DynamicImage::ImageRgb16(picture) => upper(picture.into_raw()),
        DynamicImage::ImageRgba16(picture) => colours(upper(picture.into_raw())),
        other => return other.into_rgb8(), // no decoder that is used here has other types
    };
    image::RgbImage::from_raw(width, height, values).expect("there are three values for each pixel")
}

fn name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::WebP => "WebP",
        _ => "PNG",
    }
}

/// What a file seems to be, by its first bytes.
fn kind(bytes: &[u8]) -> &'static str {
    match bytes {
        [] => "an empty file",
        [b'G', b'I', b'F', b'8', ..] => "a GIF file",
        [b'B', b'M', ..] => "a BMP file",
        [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..] => "a TIFF file",
        [_, _, _, _, b'f', b't', b'y', b'p', b'a', b'v', b'i', ..] => "an AVIF file",
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => "a HEIC file or a video",
        [b'8', b'B', b'P', b'S', ..] => "a Photoshop file",
        [b'<', ..] => "a text, perhaps SVG or HTML",
        _ => "a file of another kind",
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::{super::resample::tests::golden, *};

    fn folder() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images")
    }

    #[test]
    fn pictures_are_read_as_diffusers_reads_them() {
        let golden = golden();
        let rows = golden["read"].as_object().unwrap();
        assert!(rows.len() > 30);
        for (name, row) in rows {
            let picture = Image::read(&folder().join(name)).unwrap();
            assert_eq!(
                [picture.width, picture.height].map(|n| n as u64),
                [0, 1].map(|i| row["size"][i].as_u64().unwrap())
            );
            let text = row["rgb"].as_str().unwrap();
            let byte = |at: usize| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap();
            let wanted: Vec<u8> = (0..text.len() / 2).map(byte).collect();
            assert_eq!(picture.rgb.len(), wanted.len());
            // The standards leave the last bits of lossy files open.
            let is_lossy = name.ends_with("jpg") || name == "lossy.webp" || name == "turned.webp";
            let most = picture.rgb.iter().zip(&wanted).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            eprintln!("{name}: {most}");
            assert!(most <= if is_lossy { 4 } else { 0 }, "{name}: {most}\n{:?}\n{wanted:?}", picture.rgb);
        }
    }

    #[test]
    fn a_file_that_is_cut_off_anywhere_is_rejected() {
        for name in
            ["rgb.png", "palette.png", "420.jpg", "progressive.jpg", "lossless.webp", "lossy.webp", "animated.webp"]
        {
            let bytes = fs::read(folder().join(name)).unwrap();
            Image::decode(&bytes, MAX_PIXELS).unwrap();
            // The last chunk of a PNG has no pixels, and in an animated file the second picture is not read.
            let end = match name {
                _ if name.ends_with("png") => bytes.len() - 16,
                "animated.webp" => bytes.len() / 3,
                _ => bytes.len(),
            };
            for length in 0..end {
                let error = Image::decode(&bytes[..length], MAX_PIXELS);
                let error = error.map(|_| panic!("{name}: {length} of {} bytes", bytes.len())).unwrap_err();
                assert_eq!(error.exit_code(), 2);
                assert!(length < 12 || error.to_string().contains("damaged or not whole"), "{name}, {length}: {error}");
            }
        }
    }

    #[test]
    fn what_is_no_picture_or_too_large_is_rejected_with_one_message() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        // The head of a PNG of 60,000x60,000 pixels.
        let mut large = fs::read(self::folder().join("rgb.png")).unwrap();
        large[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
        let checksum = crc32(&large[12..29]);
        large[29..33].copy_from_slice(&checksum);
        for (bytes, says) in [
            (
                &b""[..],
                "this is no picture that can be read\n  found: an empty file\n  try:   a PNG, JPEG or WebP file",
            ),
            (b"GIF89a", "a GIF file"),
            (b"a text", "a file of another kind"),
            (&large, "at most 67108864 pixels\n  found: 60000x60000"),
        ] {
            fs::write(&path, bytes).unwrap();
            let error = Image::read(&path).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let message = error.to_string();
            assert!(message.starts_with("reading the picture ") && message.contains(says), "{message}");
        }
        let error = Image::read(folder.path()).unwrap_err().to_string();
        assert!(error.contains("a folder; a regular file is needed"), "{error}");
        let error = Image::read(Path::new("/nowhere/a.png")).unwrap_err();
        assert_eq!(error.exit_code(), 2);
    }

    #[test]
    fn a_png_palette_that_ends_within_a_colour_is_refused_without_a_panic() {
        let whole = fs::read(folder().join("palette.png")).unwrap();
        let at = whole.windows(4).position(|kind| kind == b"PLTE").unwrap();
        let length = u32::from_be_bytes(whole[at - 4..at].try_into().unwrap()) as usize;
        for cut in 1..=2 {
            let mut chunk = whole[at..at + 4 + length - cut].to_vec();
            chunk.extend(crc32(&chunk));
            let damaged =
                [&whole[..at - 4], &((length - cut) as u32).to_be_bytes(), &chunk, &whole[at + 8 + length..]].concat();
            let error = Image::decode(&damaged, MAX_PIXELS).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("its palette ends within a colour"), "{error}");
        }
    }

    /// The checksum of a PNG chunk.
    fn crc32(bytes: &[u8]) -> [u8; 4] {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
            }
        }
        (!crc).to_be_bytes()
    }

    #[test]
    fn a_digest_is_of_the_pixels_and_the_size() {
        let picture = |width, height| Image { width, height, rgb: vec![1; 18] };
        assert_ne!(picture(2, 3).digest(), picture(3, 2).digest());
        assert_eq!(picture(2, 3).digest().len(), 64);
        let read = |name: &str| Image::read(&folder().join(name)).unwrap().digest();
        assert_eq!(read("rgb.png"), read("lossless.webp"), "not of the file");
    }
}
