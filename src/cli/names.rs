//! Names of the files: by the place in the list, so that no two requests share one, and with enough of the prompt to
//! find a picture again.

/// The most characters of a prompt.
const SLUG: usize = 40;

/// `00003-a-red-fox.png`, or `00003_01-a-red-fox.png` where a prompt has several images. Both numbers count from 0.
pub fn file_name(prompt_index: usize, image_index: usize, images: usize, prompt: &str, extension: &str) -> String {
    let image = if images > 1 { format!("_{image_index:02}") } else { String::new() };
    let slug = slug(prompt);
    let hyphen = if slug.is_empty() { "" } else { "-" };
    format!("{prompt_index:05}{image}{hyphen}{slug}.{extension}")
}

/// Lower-case ASCII letters and digits with single hyphens between; empty for a prompt that has none.
fn slug(prompt: &str) -> String {
    let mut slug = String::new();
    for c in prompt.chars() {
        if c.is_ascii_alphanumeric() {
            slug.push(c.to_ascii_lowercase());
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
        if slug.len() == SLUG {
            break;
        }
    }
    slug.truncate(slug.trim_end_matches('-').len());
    slug
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_sort_by_place_and_show_the_prompt() {
        for (prompt_index, image_index, images, prompt, name) in [
            (0, 0, 1, "a red fox", "00000-a-red-fox.png"),
            (3, 1, 4, "A Red Fox!", "00003_01-a-red-fox.png"),
            (0, 100, 101, "x", "00000_100-x.png"),
            (123_456, 0, 1, "x", "123456-x.png"),
            (1, 0, 1, "", "00001.png"),
            (1, 0, 2, "狐狸 🦊", "00001_00.png"),
            (1, 0, 1, "../../etc/passwd", "00001-etc-passwd.png"),
            (1, 0, 1, "  --- CON: a\nb\t", "00001-con-a-b.png"),
            (
                1,
                0,
                1,
                "one two three four five six seven eight nine ten",
                "00001-one-two-three-four-five-six-seven-eight.png",
            ),
            (
                1,
                0,
                1,
                "one two three four five six seven eigh nine",
                "00001-one-two-three-four-five-six-seven-eigh-n.png",
            ),
        ] {
            assert_eq!(file_name(prompt_index, image_index, images, prompt, "png"), name);
        }
        assert_eq!(slug(&"x".repeat(100)).len(), SLUG);
    }
}
