//! The prompt syntax of AUTOMATIC1111's web UI and of those made after it: weights in brackets, `BREAK`, escapes and
//! tags of LoRAs. Composition (`AND`), prompt editing (`[from:to:when]`) and alternation (`[a|b]`) are recognised and
//! rejected, because the web UI would not draw them as text.
//!
//! All functions take time in proportion to the length of the text, which is limited, as is the depth of brackets.

use std::fmt;

use crate::error::{Error, Result};

/// The longest prompt, in bytes.
pub const LONGEST_PROMPT: usize = 1 << 16;
/// The most brackets that may be open at the same place.
const DEEPEST: usize = 64;
/// The factor of `(x)`; that of `[x]` is its inverse.
const STEP: f64 = 1.1;
/// The most characters of a prompt that a message shows.
const SHOWN: usize = 80;

/// A prompt without its tags.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Prompt {
    /// The text that is encoded.
    pub text: String,
    /// The LoRAs that were named, in their order.
    pub loras: Vec<LoraTag>,
}

/// A LoRA that a prompt names: `<lora:name:0.8>`.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraTag {
    /// The file's name without folder and extension.
    pub name: String,
    /// The weight in the denoiser.
    pub unet_weight: f64,
    /// The weight in the text encoders.
    pub text_encoder_weight: f64,
}

impl LoraTag {
    /// The arguments of the tag, as [`LoraTag::parse`] reads them.
    pub fn arguments(&self) -> String {
        let Self { name, unet_weight, text_encoder_weight } = self;
        match unet_weight == text_encoder_weight {
            true => format!("{name}:{unet_weight}"),
            false => format!("{name}:{text_encoder_weight}:{unet_weight}"),
        }
    }

    /// Reads the arguments of a tag, such as `name:0.8`: name, weight in the text encoders, weight in the UNet, either
    /// also as `te=` and `unet=`. One weight is for both.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(arguments: &str) -> Result<Self, String> {
        let (named, positional): (Vec<&str>, Vec<&str>) = arguments.split(':').partition(|part| part.contains('='));
        let name = positional.first().copied().unwrap_or_default();
        if name.is_empty() {
            return Err("a name is missing".into());
        }
        if name.starts_with('.') || name.contains(|c: char| matches!(c, '/' | '\\') || c.is_control()) {
            return Err("the name of a file without folder and extension is wanted".into());
        }
        let number = |text: &str| match text.trim().parse::<f64>() {
            Ok(number) if (number as f32).is_finite() => Ok(number),
            _ => Err(format!("{text:?} is not a weight")),
        };
        let mut text_encoder = positional.get(1).map(|text| number(text)).transpose()?;
        let mut unet = positional.get(2).map(|text| number(text)).transpose()?;
        if positional.len() > 3 {
            return Err("the number of ranks that are used cannot be chosen".into());
        }
        for argument in named {
            let (key, value) = argument.split_once('=').unwrap_or((argument, ""));
            match key.trim() {
                "te" => text_encoder = Some(number(value)?),
                "unet" => unet = Some(number(value)?),
                _ => return Err(format!("{argument:?} is not supported, only `te=` and `unet=` are")),
            }
        }
        let text_encoder_weight = text_encoder.unwrap_or(1.0);
        let unet_weight = unet.unwrap_or(text_encoder_weight);
        Ok(Self { name: name.to_owned(), unet_weight, text_encoder_weight })
    }
}

impl fmt::Display for LoraTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<lora:{}>", self.arguments())
    }
}

/// A part of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// A text and the weight of all its tokens.
    Text(String, f64),
    /// The word `BREAK`: the rest begins in a new chunk.
    Break,
}

/// Reads a prompt: takes its tags out, and checks the rest.
///
/// # Errors
/// If a tag is invalid or of another kind than `lora`, if one LoRA is named twice, or as [`check`]. `AND` is an error.
pub fn prompt(prompt: &str) -> Result<Prompt> {
    check_length(prompt)?;
    let prompt = take_tags(prompt)?;
    if let Some((start, _)) = words(&prompt.text, "AND").next() {
        return Err(unsupported(&prompt.text, start, "AND", "joins several prompts in web UIs")
            .hint("write the word in small letters, or draw each part by itself"));
    }
    check(&prompt.text)?;
    Ok(prompt)
}

/// Checks a text whose tags, if it may have any, were taken out.
///
/// # Errors
/// If it has prompt editing or alternation, if a weight is not a number, or if it is longer than 64 KiB or has more
/// than 64 open brackets at one place.
pub fn check(text: &str) -> Result<()> {
    check_length(text)?;
    if let Some((start, found, what)) = editing(text) {
        return Err(unsupported(text, start, found, what)
            .hint("brackets that are meant as text are written \\[ and \\]; for less weight: (word:0.9)"));
    }
    pieces(text).map(drop)
}

fn check_length(prompt: &str) -> Result<()> {
    if prompt.len() <= LONGEST_PROMPT {
        return Ok(());
    }
    Err(Error::input(format!("a prompt may have {LONGEST_PROMPT} bytes")).found(format!("{} bytes", prompt.len())))
}

fn unsupported(text: &str, start: usize, found: &str, what: &str) -> Error {
    let found: String = found.chars().take(SHOWN).collect();
    Error::input(format!("the prompt, {}: {found:?} {what}, which sdshard does not do", position(text, start)))
}

/// A position in a text as people count: characters from 1 on.
fn position(text: &str, start: usize) -> String {
    format!("character {}", text[..start].chars().count() + 1)
}

/// A tag `<name:arguments>` of a text.
struct Tag<'t> {
    start: usize,
    end: usize,
    name: &'t str,
    arguments: &'t str,
}

/// The first tag from `from` on: `<`, a word, `:`, anything without `>`, `>`.
fn next_tag(text: &str, mut from: usize) -> Option<Tag<'_>> {
    while let Some(length) = text[from..].find('>') {
        let end = from + length;
        for start in text[from..end].match_indices('<').map(|(at, _)| from + at) {
            let inside = &text[start + 1..end];
            let name = &inside[..inside.find(|c| !is_word(c)).unwrap_or(inside.len())];
            match inside[name.len()..].strip_prefix(':') {
                // The web UI takes `<lora:>` for text, which nobody means.
                Some(arguments) if !name.is_empty() && (!arguments.is_empty() || name == "lora") => {
                    return Some(Tag { start, end: end + 1, name, arguments });
                }
                _ => {}
            }
        }
        from = end + 1;
    }
    None
}

fn take_tags(prompt: &str) -> Result<Prompt> {
    let mut read = Prompt::default();
    let mut from = 0;
    while let Some(tag) = next_tag(prompt, from) {
        let refuse = |what: &str| {
            let shown: String = prompt[tag.start..tag.end].chars().take(SHOWN).collect();
            Error::input(format!("the prompt, {}: {shown:?}: {what}", position(prompt, tag.start)))
        };
        match tag.name {
            "lora" | "lyco" => {
                let lora = LoraTag::parse(tag.arguments).map_err(|what| {
                    refuse(&what).hint("<lora:name:0.8>, or <lora:name:0.5:0.8> for text encoder and UNet")
                })?;
                if read.loras.iter().any(|other| other.name == lora.name) {
                    return Err(refuse("this LoRA is named twice").hint("one tag with the sum of the weights"));
                }
                read.loras.push(lora);
            }
            "hypernet" => return Err(refuse("hypernetworks are not supported")),
            _ => return Err(refuse("there is no such tag").hint("the only tags are <lora:name:weight>")),
        }
        read.text += &prompt[from..tag.start];
        from = tag.end;
    }
    read.text += &prompt[from..];
    Ok(read)
}

/// The first prompt editing or alternation: where it begins, its text, and what it does in web UIs.
///
/// Brackets must match: the web UI takes those that do not for text, as all that are around them.
fn editing(text: &str) -> Option<(usize, &str, &'static str)> {
    struct Open {
        start: usize,
        is_square: bool,
        has_bar: bool,
        /// The number of colons directly in the bracket, and the position behind the last one.
        colons: usize,
        last: usize,
    }
    let mut open: Vec<Open> = Vec::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\\' => _ = characters.next(),
            '(' | '[' => open.push(Open { start: at, is_square: c == '[', has_bar: false, colons: 0, last: 0 }),
            ':' => {
                if let Some(inner) = open.last_mut() {
                    (inner.colons, inner.last) = (inner.colons + 1, at + 1);
                }
            }
            '|' => {
                if let Some(inner) = open.last_mut() {
                    inner.has_bar = true;
                }
            }
            ')' => match open.pop() {
                Some(Open { is_square: false, has_bar: false, colons: 0..=1, .. }) => {}
                _ => open.clear(),
            },
            ']' => match open.pop() {
                Some(Open { start, is_square: true, has_bar: true, colons: 0, .. }) => {
                    return Some((start, &text[start..=at], "alternates between texts in web UIs"));
                }
                Some(Open { start, is_square: true, has_bar: false, colons: 1..=2, last })
                    if is_number(text[last..at].trim()) =>
                {
                    return Some((start, &text[start..=at], "changes the text after some steps in web UIs"));
                }
                Some(Open { is_square: true, has_bar: false, colons: 0, .. }) => {}
                _ => open.clear(),
            },
            _ => {}
        }
    }
    None
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'+' | b'-' | b'e' | b'E')) && text.parse::<f64>().is_ok()
}

/// The pieces of a text with their weights. Brackets and escapes are gone, neighbours of equal weight are one piece,
/// and an empty text is one empty piece.
///
/// # Errors
/// If a weight is not a number or too large, or if more than 64 brackets are open at one place.
pub fn pieces(text: &str) -> Result<Vec<Piece>> {
    let mut pieces: Vec<Piece> = Vec::new();
    // For each open bracket, the number of pieces before it.
    let (mut round, mut square): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut from = 0;
    while let Some(first) = text[from..].chars().next() {
        let rest = &text[from..];
        let mut length = first.len_utf8();
        match first {
            '\\' => {
                let literal = rest[1..].chars().next().filter(|c| matches!(c, '(' | ')' | '[' | ']' | '\\'));
                length += literal.map_or(0, char::len_utf8);
                push(&mut pieces, literal.map(String::from).unwrap_or_default());
            }
            '(' => round.push(pieces.len()),
            '[' => square.push(pieces.len()),
            ':' => match closing_weight(rest) {
                None => push(&mut pieces, ":"),
                Some(weight) => {
                    length = weight.length;
                    match round.pop() {
                        None => push(&mut pieces, &rest[..length]),
                        Some(start) => {
                            let number = weight.digits.parse::<f64>().ok().filter(|x| (*x as f32).is_finite());
                            let Some(number) = number else {
                                let what = format!("the prompt, {}: a weight is a number", position(text, from + 1));
                                let digits: String = weight.digits.chars().take(SHOWN).collect();
                                return Err(Error::input(what)
                                    .found(format!("{digits:?}"))
                                    .hint("(word:1.3); a bracket that is meant as text is written \\( or \\)"));
                            };
                            multiply(&mut pieces[start..], number);
                        }
                    }
                }
            },
            ')' => match round.pop() {
                Some(start) => multiply(&mut pieces[start..], STEP),
                None => push(&mut pieces, ")"),
            },
            ']' => match square.pop() {
                Some(start) => multiply(&mut pieces[start..], 1.0 / STEP),
                None => push(&mut pieces, "]"),
            },
            _ => {
                length = rest.find(['\\', '(', ')', '[', ']', ':']).unwrap_or(rest.len());
                push_words(&mut pieces, &rest[..length]);
            }
        }
        if round.len() + square.len() > DEEPEST {
            return Err(Error::input(format!("the prompt, {}: too many open brackets", position(text, from)))
                .found(format!("{}", DEEPEST + 1))
                .hint(format!("{DEEPEST} at most; a bracket that is meant as text is written \\( or \\[")));
        }
        from += length;
    }
    round.into_iter().for_each(|start| multiply(&mut pieces[start..], STEP));
    square.into_iter().for_each(|start| multiply(&mut pieces[start..], 1.0 / STEP));
    if pieces.is_empty() {
        push(&mut pieces, "");
    }
    let mut merged: Vec<Piece> = Vec::new();
    for piece in pieces {
        if let Piece::Text(text, weight) = &piece
            && !(*weight as f32).is_finite()
        {
            let shown: String = text.chars().take(SHOWN).collect();
            return Err(Error::input(format!("the prompt: the weight of {shown:?} is too large")));
        }
        match (merged.last_mut(), &piece) {
            (Some(Piece::Text(before, weight)), Piece::Text(text, same)) if weight == same => before.push_str(text),
            _ => merged.push(piece),
        }
    }
    Ok(merged)
}

fn push(pieces: &mut Vec<Piece>, text: impl Into<String>) {
    pieces.push(Piece::Text(text.into(), 1.0));
}

/// A text without brackets: its pieces between the words `BREAK`.
fn push_words(pieces: &mut Vec<Piece>, text: &str) {
    let mut from = 0;
    for (start, end) in words(text, "BREAK") {
        let before = text[from..start].trim_end();
        push(pieces, if from > 0 { before.trim_start() } else { before });
        pieces.push(Piece::Break);
        from = end;
    }
    push(pieces, if from > 0 { text[from..].trim_start() } else { text });
}

fn multiply(pieces: &mut [Piece], factor: f64) {
    for piece in pieces {
        if let Piece::Text(_, weight) = piece {
            *weight *= factor;
        }
    }
}

/// A weight that closes a bracket: `:1.3)`, with spaces around the number.
struct ClosingWeight<'t> {
    digits: &'t str,
    length: usize,
}

/// The weight at the beginning of a text that begins with a colon.
fn closing_weight(text: &str) -> Option<ClosingWeight<'_>> {
    let number = text[1..].trim_start();
    let unsigned = number.strip_prefix(['+', '-']).unwrap_or(number);
    let rest = unsigned.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let behind = rest.trim_start().strip_prefix(')')?;
    let digits = &number[..number.len() - rest.len()];
    (rest.len() < unsigned.len()).then_some(ClosingWeight { digits, length: text.len() - behind.len() })
}

/// The places of a word that stands by itself.
fn words<'t>(text: &'t str, word: &'t str) -> impl Iterator<Item = (usize, usize)> + 't {
    text.match_indices(word).map(|(start, word)| (start, start + word.len())).filter(|&(start, end)| {
        !text[..start].chars().next_back().is_some_and(is_word) && !text[end..].chars().next().is_some_and(is_word)
    })
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `BREAK` for a break, otherwise text and weight.
    fn read(text: &str) -> Vec<(String, f64)> {
        let pieces = pieces(text).unwrap();
        pieces
            .into_iter()
            .map(|piece| match piece {
                Piece::Text(text, weight) => (text, weight),
                Piece::Break => ("BREAK".to_owned(), f64::INFINITY),
            })
            .collect()
    }

    #[test]
    fn brackets_give_the_weights_that_the_web_ui_gives() {
        const BREAK: (&str, f64) = ("BREAK", f64::INFINITY);
        let down = 1.0 / 1.1;
        let rows: [(&str, &[(&str, f64)]); 25] = [
            ("a (red) ball", &[("a ", 1.0), ("red", 1.1), (" ball", 1.0)]),
            ("a ((red)) ball", &[("a ", 1.0), ("red", 1.21), (" ball", 1.0)]),
            ("a [red] ball", &[("a ", 1.0), ("red", 0.909_091), (" ball", 1.0)]),
            ("(a (red:1.3) ball:1.2)", &[("a ", 1.2), ("red", 1.56), (" ball", 1.2)]),
            ("a (red:1.3) [ball:0.5]", &[("a ", 1.0), ("red", 1.3), (" ", 1.0), ("ball:0.5", 0.909_091)]),
            (r"\(literal\) (x)", &[("(literal) ", 1.0), ("x", 1.1)]),
            ("(unbalanced", &[("unbalanced", 1.1)]),
            ("un)balanced", &[("un)balanced", 1.0)]),
            ("a (b:1.1", &[("a ", 1.0), ("b:1.1", 1.1)]),
            ("(a:b:1.3)", &[("a:b", 1.3)]),
            ("(a:-1)", &[("a", -1.0)]),
            ("a, (b, c:0.8) BREAK d", &[("a, ", 1.0), ("b, c", 0.8), ("", 1.0), BREAK, ("d", 1.0)]),
            (
                "(masterpiece:1.2), best quality, ((1girl)), [blurry], smile :)",
                &[
                    ("masterpiece", 1.2),
                    (", best quality, ", 1.0),
                    ("1girl", 1.21),
                    (", ", 1.0),
                    ("blurry", 0.909_091),
                    (", smile :)", 1.0),
                ],
            ),
            ("(smile :)", &[("smile :", 1.1)]),
            ("(a)(b)", &[("ab", 1.1)]),
            ("((a)[b])", &[("a", 1.21), ("b", 1.0)]),
            ("((a:1.3):1.1)", &[("a", 1.43)]),
            ("(a: 1.3 )", &[("a", 1.3)]),
            ("()", &[("", 1.0)]),
            // The web UI multiplies the marker, so that the word is drawn with the weight -1.2.
            ("(a BREAK b:1.2)", &[("a", 1.2), BREAK, ("b", 1.2)]),
            ("aBREAKb", &[("aBREAKb", 1.0)]),
            (r"a\:b", &[("a:b", 1.0)]),
            (r"C:\path", &[("C:path", 1.0)]),
            ("(a:1e2)", &[("a:1e2", 1.1)]),
            ("((a [b", &[("a ", 1.21), ("b", 1.21 * down)]),
        ];
        for (text, want) in rows {
            let got = read(text);
            let same = |(got, want): (&(String, f64), &(&str, f64))| {
                got.0 == want.0 && (got.1 == want.1 || (got.1 - want.1).abs() < 1e-6)
            };
            assert!(got.len() == want.len() && got.iter().zip(want).all(same), "{text}: {got:?}\nwanted: {want:?}");
        }
    }

    #[test]
    fn a_break_is_a_word_and_takes_the_spaces_around_it() {
        let texts = |text: &str| read(text).into_iter().map(|(text, _)| text).collect::<Vec<_>>();
        assert_eq!(texts("a \n BREAK\tBREAK b"), ["a", "BREAK", "", "BREAK", "b"]);
        assert_eq!(texts("BREAK"), ["", "BREAK", ""]);
        assert_eq!(texts("a BREAK_ _BREAK BREAKS break"), ["a BREAK_ _BREAK BREAKS break"]);
        assert_eq!(texts("(BREAK:1.3)"), ["", "BREAK", ""]);
        assert_eq!(texts("a BREAK (b:-1)"), ["a", "BREAK", "", "b"]);
    }

    #[test]
    fn a_weight_that_is_no_number_is_an_error_with_its_place() {
        for (text, says) in [
            ("é (x:1.3.1)", "character 6: a weight is a number\n  found: \"1.3.1\""),
            ("(x:.)", "found: \".\""),
            (&format!("(x:{})", "9".repeat(400)), "a weight is a number"),
            (
                &format!("({}x{})", "(".repeat(9), &format!(":{})", "9".repeat(38)).repeat(9)),
                "the weight of \"x\" is too large",
            ),
        ] {
            let error = check(text).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(says), "{error}");
        }
        assert_eq!(read("x:1.3.1)"), [("x:1.3.1)".to_owned(), 1.0)]);
    }

    #[test]
    fn tags_are_taken_out_of_a_prompt() {
        let tag = |name: &str, text_encoder_weight, unet_weight| LoraTag {
            name: name.to_owned(),
            unet_weight,
            text_encoder_weight,
        };
        for (text, rest, loras) in [
            ("a <lora:Snow v2:0.7> fox", "a  fox", vec![tag("Snow v2", 0.7, 0.7)]),
            ("<lora:a><lyco:b:-0.5:2>x", "x", vec![tag("a", 1.0, 1.0), tag("b", -0.5, 2.0)]),
            ("x<lora:a:unet=0.5>", "x", vec![tag("a", 1.0, 0.5)]),
            ("x<lora:a:te=0.5>", "x", vec![tag("a", 0.5, 0.5)]),
            ("[<lora:a:1e-1>:b]", "[:b]", vec![tag("a", 0.1, 0.1)]),
            ("a < b > <3:> <a b:c> <cat-toy> < lora:a:1>", "a < b > <3:> <a b:c> <cat-toy> < lora:a:1>", vec![]),
            ("<<lora:a:1>", "<", vec![tag("a", 1.0, 1.0)]),
            ("<lora:a:1", "<lora:a:1", vec![]),
        ] {
            assert_eq!(prompt(text).unwrap(), Prompt { text: rest.to_owned(), loras }, "{text}");
        }
        assert_eq!(
            [tag("a", 0.7, 0.7), tag("a", -0.5, 2.0)].map(|tag| tag.to_string()),
            ["<lora:a:0.7>", "<lora:a:-0.5:2>"]
        );
    }

    #[test]
    fn a_tag_that_is_not_followed_is_an_error() {
        for (text, says) in [
            ("a <lora:../../x:1>", "character 3: \"<lora:../../x:1>\": the name of a file without folder"),
            ("<lora:a/b:1>", "without folder"),
            (r"<lora:a\b:1>", "without folder"),
            ("<lora:..:1>", "without folder"),
            ("<lora:a\0:1>", "without folder"),
            ("<lora::1>", "a name is missing"),
            ("<lora:>", "a name is missing"),
            ("<lora:te=1>", "a name is missing"),
            ("<lora:a:x>", "\"x\" is not a weight"),
            ("<lora:a:inf>", "\"inf\" is not a weight"),
            ("<lora:a:1e39>", "\"1e39\" is not a weight"),
            ("<lora:a:>", "\"\" is not a weight"),
            ("<lora:a:1:1:8>", "the number of ranks"),
            ("<lora:a:1:lbw=ALL>", "\"lbw=ALL\" is not supported"),
            ("<lora:a:1> <lora:a:0.5>", "character 12: \"<lora:a:0.5>\": this LoRA is named twice"),
            ("<hypernet:a:1>", "hypernetworks are not supported"),
            ("<segm:a:1>", "there is no such tag"),
        ] {
            let error = prompt(text).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn what_would_change_between_steps_or_join_prompts_is_an_error() {
        for text in [
            "a [cat:dog:0.5]",
            "a [cat:dog:5]",
            "a [cat:0.25]",
            "a [cat::0.75]",
            "[cow|horse] in a field",
            "a [b:[c:d:15]:5] e",
            "[(red:1.2):blue:0.5] ball",
            "a (b:[c:d:0.5]:1.2)",
            "a [cat : dog : 0.5 ]",
            "a [cat|]",
            "(a ( [b:1e1]",
            "a [((x)) [y] \\] z:3]",
            "a cat :1.2 AND a dog:0.5 AND penguin :2.2",
            "a (b:1.2) AND c",
            "AND",
        ] {
            let error = prompt(text).unwrap_err().to_string();
            assert!(error.contains("which sdshard does not do") && error.contains("\n  try:"), "{text}: {error}");
        }
        assert!(prompt("a [cat:dog:0.5]").unwrap_err().to_string().contains("character 3: \"[cat:dog:0.5]\" changes"));
        for text in
            ["a [red] ball", "[a:b]", "[a:b:x]", "[a", "a|b", "(a|b)", r"\[a:b:0.5\]", "[a:b:c:0.5]", "CANDY and AND_"]
        {
            prompt(text).unwrap_or_else(|error| panic!("{text}: {error}"));
        }
        check("red AND blue <lora:../x>").unwrap();
        assert!(check("[cow|horse]").is_err());
    }

    #[test]
    fn a_hostile_prompt_takes_neither_long_nor_the_stack() {
        for unit in ["(", "[", "(a", "(a)", "[[a:", "<a:", "<", "\\", ":", ": ", "BREAK ", "(a:1.1)", ")", "[a]", "é("]
        {
            for text in [unit.repeat(LONGEST_PROMPT / unit.len()), format!("({}", unit.repeat(20_000 / unit.len()))] {
                let before = std::time::Instant::now();
                _ = prompt(&text);
                _ = pieces(&text);
                assert!(before.elapsed().as_secs() < 5, "{unit}");
            }
        }
        assert!(pieces(&"(".repeat(65)).unwrap_err().to_string().contains("too many open brackets"));
        assert_eq!(pieces(&"(".repeat(64)).unwrap().len(), 1);
        assert!(prompt(&"a".repeat(LONGEST_PROMPT + 1)).unwrap_err().to_string().contains("65537 bytes"));
    }
}
