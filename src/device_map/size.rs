//! Sizes in memory as text. All other code uses bytes.

/// The units. Binary units contain an `i`.
const UNITS: [(&str, u64); 8] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// Parses a number and a unit, such as `8GiB`, `1.5 GB` or `512MiB`, to bytes, rounded down.
///
/// The case of the prefix does not matter, but a decimal unit must end in a capital `B`: accelerate reads `8Gb` as
/// eight gigabits, so such a size is rejected.
///
/// # Errors
/// If the text is not a size; the error lists the possible forms.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let forms = || "a number and a unit: \"6GiB\", \"6.5GB\", \"512MiB\"".to_string();
    let text = text.trim();
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..unit_at], text[unit_at..].trim_start());
    if unit.is_empty() && !number.is_empty() {
        return Err(format!("a unit is missing; did you mean \"{number}GiB\"?"));
    }
    let &(name, unit_bytes) = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(forms)?;
    if unit.ends_with('b') && !name.contains('i') {
        return Err(format!("a small b counts bits; did you mean {name}?"));
    }
    scale(number, unit_bytes).ok_or_else(forms)
}

/// Parses a size as accelerate's `convert_file_size_to_int` does: a number in Python's notation and a unit in either
/// case. A decimal unit with a small `b` counts bits (`8Gb` is 10^9 bytes). Plain bytes such as `1024B` are accepted
/// too. `None` if it is not a size.
pub(super) fn parse_accelerate_size(text: &str) -> Option<u64> {
    let upper = text.to_ascii_uppercase();
    let binary = [("GIB", 1u64 << 30), ("MIB", 1 << 20), ("KIB", 1 << 10)];
    let decimal = [("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1_000)];
    let (number, bytes) = binary
        .iter()
        .chain(&decimal)
        .find_map(|(unit, bytes)| Some((upper.strip_suffix(unit)?, bytes)))
        .or_else(|| Some((upper.strip_suffix('B')?, &1)))?;
    let bits = text.ends_with('b') && !upper.ends_with("IB") && *bytes > 1;
    let size: f64 = number.trim().parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0)?;
    let size = size * *bytes as f64;
    (size < u64::MAX as f64).then(|| size as u64 / if bits { 8 } else { 1 })
}

/// `number * unit` in whole bytes, computed with integers. `None` if this is not a number or does not fit.
fn scale(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    // With every unit, twelve digits after the point are finer than a byte.
    if whole.is_empty() || fraction.is_empty() || fraction.len() > 12 || fraction.contains('.') {
        return None;
    }
    let parts = 10_u64.pow(fraction.len() as u32);
    let fraction = u128::from(fraction.parse::<u64>().ok()?) * u128::from(unit) / u128::from(parts);
    whole.parse::<u64>().ok()?.checked_mul(unit)?.checked_add(u64::try_from(fraction).ok()?)
}

/// Bytes as text for users: `3.1 GiB`, `512 MiB`, `12 KiB`, `100 B`. The text is rounded and never parsed again.
pub fn format_bytes(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..MIB => format!("{} KiB", bytes.div_ceil(1 << 10)),
        // From 1023 MiB on, GiB are used, because 1023.5 MiB would be printed as 1024 MiB.
        _ if bytes < 1023 * MIB => format!("{} MiB", bytes.div_ceil(MIB)),
        _ => format!("{:.1} GiB", bytes as f64 / (1_u64 << 30) as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_exactly() {
        for (text, bytes) in [
            ("8GB", 8_000_000_000),
            ("8GiB", 8 << 30),
            ("8 GB", 8_000_000_000),
            (" 512MiB ", 512 << 20),
            ("1.5GiB", 3 << 29),
            ("0.1KB", 100),
            ("6gib", 6 << 30),
            ("2gB", 2_000_000_000),
            ("1TiB", 1 << 40),
            ("0GiB", 0),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
    }

    #[test]
    fn texts_that_are_not_sizes_are_rejected_with_a_suggestion() {
        for (text, hint) in [
            ("8Gb", "did you mean GB?"),
            ("8gb", "did you mean GB?"),
            ("8", "did you mean \"8GiB\"?"),
            ("", "a number and a unit"),
            ("GiB", "a number and a unit"),
            ("8G", "a number and a unit"),
            ("-1", "a number and a unit"),
            ("-1GiB", "a number and a unit"),
            ("1e400GB", "a number and a unit"),
            ("99999999999GiB", "a number and a unit"),
            ("1.2.3GiB", "a number and a unit"),
            (".5GiB", "a number and a unit"),
            ("inf", "a number and a unit"),
        ] {
            let message = parse_size(text).unwrap_err();
            assert!(message.contains(hint), "{text}: {message}");
        }
    }

    #[test]
    fn sizes_of_accelerate_are_the_bytes_that_accelerate_reads() {
        // Results of accelerate 1.15.0, except for the size that ends in a plain B.
        for (text, bytes) in [
            ("8GB", Some(8_000_000_000)),
            ("8gb", Some(1_000_000_000)),
            ("8Gb", Some(1_000_000_000)),
            ("8GiB", Some(8 << 30)),
            ("8gib", Some(8 << 30)),
            ("1.5MiB", Some(3 << 19)),
            (" 0.1KB", Some(100)),
            ("1e3 MB", Some(1_000_000_000)),
            ("10KB", Some(10_000)),
            ("10Kb", Some(1_250)),
            (".5GB", Some(500_000_000)),
            ("1024B", Some(1024)),
            ("-1GB", None),
            ("8", None),
            ("8G", None),
            ("GB", None),
            ("infGB", None),
            ("1e300GB", None),
        ] {
            assert_eq!(parse_accelerate_size(text), bytes, "{text}");
        }
    }

    #[test]
    fn bytes_are_printed_in_the_unit_that_people_think_in() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1025, "2 KiB"),
            (512 << 20, "512 MiB"),
            (1 << 30, "1.0 GiB"),
            ((1 << 30) - 1, "1.0 GiB"),
            (3_328_599_654, "3.1 GiB"),
        ] {
            assert_eq!(format_bytes(bytes), text);
        }
    }
}
