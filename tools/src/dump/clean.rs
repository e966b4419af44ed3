//! Words that others wrote, made fit for a terminal and a file.

/// Characters of a word, at most.
const MAX: usize = 4096;

/// The text without characters that a terminal would act on, each replaced by U+FFFD, and cut after [`MAX`] characters.
pub(super) fn clean(text: &str) -> String {
    text.chars().take(MAX).map(|c| if acts(c) { '\u{fffd}' } else { c }).collect()
}

/// Whether a terminal acts on a character: it controls, or changes the direction or the visibility of others.
fn acts(c: char) -> bool {
    let formats = ['\u{200b}'..='\u{200f}', '\u{2028}'..='\u{202e}', '\u{2060}'..='\u{206f}', '\u{feff}'..='\u{feff}'];
    c.is_control() || formats.iter().any(|range| range.contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_acts_on_a_terminal() {
        assert_eq!(clean("a\u{1b}[2J\nü\u{202e}"), "a\u{fffd}[2J\u{fffd}ü\u{fffd}");
        assert_eq!(clean(&"x".repeat(5000)).len(), MAX);
    }
}
