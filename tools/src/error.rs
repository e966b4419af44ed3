//! What is wrong with a text, and where.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

/// The most characters of a text that a message quotes.
const QUOTED: usize = 60;

/// One thing that is wrong with a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The file's name, as it was given.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// The text that is wrong: one line, without control characters.
    pub text: String,
    /// What is wrong with it.
    pub what: String,
    /// What may have been meant.
    pub near: Option<String>,
}

impl Mistake {
    pub(crate) fn new(file: &str, source: &str, span: Range<usize>, what: String, near: Option<String>) -> Self {
        let before = source.get(..span.start).unwrap_or(source);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        let text = quotable(source.get(span).unwrap_or(""));
        Self { file: file.to_owned(), line, column, text, what, near }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}: ", self.file, self.line, self.column)?;
        if !self.text.is_empty() {
            write!(f, "`{}`: ", self.text)?;
        }
        f.write_str(&self.what)?;
        match &self.near {
            Some(near) => write!(f, "; did you mean `{near}`?"),
            None => Ok(()),
        }
    }
}

/// Why there is no policy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{}: {source}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// Everything that is wrong with the text, from its beginning to its end; at least one.
    #[error("{}", lines(.0))]
    Wrong(Vec<Mistake>),
}

fn lines(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// The first line of a text, cut, and without characters that a terminal would act on.
fn quotable(text: &str) -> String {
    let line = text.lines().next().unwrap_or("");
    let mut quoted: String = line.chars().take(QUOTED).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if quoted.len() < text.trim_end().len() {
        quoted.push('…');
    }
    quoted
}
