//! Values of a TOML document with their places, and the mistakes found so far. A reader goes on after a mistake, so that
//! all of them are told at once.

use std::fmt::Display;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::error::{Error, Mistake};
use crate::names::{find, near};

/// A value and where it is.
pub type Value<'s> = Spanned<DeValue<'s>>;
/// A key and where it is.
pub type Key<'s> = Spanned<DeString<'s>>;

/// The text that is read, and what is wrong with it.
pub struct Reader<'s> {
    file: &'s str,
    source: &'s str,
    mistakes: Vec<(usize, Mistake)>,
}

impl<'s> Reader<'s> {
    pub fn new(file: &'s str, source: &'s str) -> Self {
        Self { file, source, mistakes: Vec::new() }
    }

    /// The document, unless it is no TOML.
    pub fn document(&mut self) -> Option<Spanned<DeTable<'s>>> {
        match DeTable::parse(self.source) {
            Ok(document) => Some(document),
            Err(error) => {
                // What is missing is missing at the end.
                let span = error.span().unwrap_or(self.source.len()..self.source.len());
                self.wrong(span, error.message());
                None
            }
        }
    }

    /// What was read, if nothing was wrong.
    pub fn finish<T>(self, read: T) -> Result<T, Error> {
        let mut mistakes = self.mistakes;
        if mistakes.is_empty() {
            return Ok(read);
        }
        mistakes.sort_by_key(|(at, _)| *at);
        Err(Error::Wrong(mistakes.into_iter().map(|(_, mistake)| mistake).collect()))
    }

    pub fn wrong(&mut self, span: Range<usize>, what: impl Display) {
        self.wrong_near(span, what, None);
    }

    pub fn wrong_near(&mut self, span: Range<usize>, what: impl Display, near: Option<String>) {
        let mistake = Mistake::new(self.file, self.source, span.clone(), what.to_string(), near);
        self.mistakes.push((span.start, mistake));
    }

    fn other_type<T>(&mut self, value: &Value<'_>, expected: &str) -> Option<T> {
        let found = value.get_ref().type_str();
        self.wrong(value.span(), format_args!("expected {expected}, found {} {found}", article(found)));
        None
    }

    /// Tells of keys that are not among `known`.
    pub fn only(&mut self, table: &DeTable<'_>, known: &[&str]) {
        for key in table.keys().filter(|key| !known.contains(&key.get_ref().as_ref())) {
            let near = near(key.get_ref(), known.iter().copied());
            self.wrong_near(key.span(), format_args!("unknown key; known are {}", known.join(", ")), near);
        }
    }

    pub fn table<'v, 'd>(&mut self, value: &'v Value<'d>) -> Option<&'v DeTable<'d>> {
        let table = value.get_ref().as_table();
        table.or_else(|| self.other_type(value, "a table"))
    }

    /// The elements of an array; none if it is something else.
    pub fn array<'v, 'd>(&mut self, value: &'v Value<'d>, expected: &str) -> &'v [Value<'d>] {
        let array = value.get_ref().as_array();
        array.or_else(|| self.other_type(value, expected)).map_or(&[], |array| array)
    }

    /// An array of two: `of` names both.
    pub fn pair<'v, 'd>(&mut self, value: &'v Value<'d>, of: &str) -> Option<[&'v Value<'d>; 2]> {
        match self.array(value, &format!("a pair of {of}")) {
            [first, second] => return Some([first, second]),
            // Of another type, it was told already.
            _ if value.get_ref().is_array() => self.wrong(value.span(), format_args!("expected two elements: {of}")),
            _ => {}
        }
        None
    }

    pub fn string<'v>(&mut self, value: &'v Value<'_>, expected: &str) -> Option<&'v str> {
        let string = value.get_ref().as_str();
        string.or_else(|| self.other_type(value, expected))
    }

    pub fn boolean(&mut self, value: &Value<'_>) -> Option<bool> {
        let boolean = value.get_ref().as_bool();
        boolean.or_else(|| self.other_type(value, "true or false"))
    }

    /// A number from `least` to `most`.
    pub fn number(&mut self, value: &Value<'_>, expected: &str, least: u64, most: u64) -> Option<u64> {
        let Some(integer) = value.get_ref().as_integer() else { return self.other_type(value, expected) };
        let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
        let number = number.filter(|number| (least..=most).contains(number));
        if number.is_none() {
            self.wrong(value.span(), format_args!("expected a number from {least} to {most}"));
        }
        number
    }

    /// A name that `find` knows, or a number from `least` to `most`.
    pub fn name_or_number(
        &mut self,
        value: &Value<'_>,
        expected: &str,
        (least, most): (u32, u32),
        mut find: impl FnMut(&mut Self, &str) -> Option<u32>,
    ) -> Option<u32> {
        match value.get_ref().as_str() {
            Some(name) => find(self, name),
            None => self.number(value, expected, least.into(), most.into()).map(|number| number as u32),
        }
    }

    /// One of a table's, by its name, or any number up to `most`. `what` is what it is one of, with its article.
    pub fn listed<T: Copy + Into<u32>>(
        &mut self,
        value: &Value<'_>,
        (article, what): (&str, &str),
        most: u32,
        table: &[(&str, T)],
    ) -> Option<u32> {
        let expected = format!("{article} {what}'s name or number");
        self.name_or_number(value, &expected, (0, most), |reader, name| {
            let found = find(table, name).map(T::into);
            if found.is_none() {
                let near = near(name, table.iter().map(|(name, _)| *name));
                let none = format_args!("no {what} that is known by name; a number is taken, too");
                reader.wrong_near(value.span(), none, near);
            }
            found
        })
    }

    /// Adds to a list what is not there yet and still fits.
    pub fn add<T: PartialEq>(&mut self, list: &mut Vec<T>, item: T, span: Range<usize>, most: usize, what: &str) {
        if list.contains(&item) {
            self.wrong(span, "is there twice");
        } else if list.len() >= most {
            self.wrong(span, format_args!("one too many: a policy has {most} {what} at most"));
        } else {
            list.push(item);
        }
    }
}

fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o']) { "an" } else { "a" }
}
