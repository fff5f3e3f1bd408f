//! Reading TOML by hand, so that every complaint has its line and says what would be right.
//!
//! All problems of a file are collected, not only the first: an operator wants to mend them in one go.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::suggest;
use crate::daemon::printable::one_line;

/// What is wrong with a configuration file: at least one problem, in the order of lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// The problems; line 0 stands for the file as a whole.
    pub problems: Vec<(usize, String)>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (line, what)) in self.problems.iter().enumerate() {
            let end = if i + 1 < self.problems.len() { "\n" } else { "" };
            match line {
                0 => write!(f, "{}: {what}{end}", self.file.display())?,
                _ => write!(f, "{}:{line}: {what}{end}", self.file.display())?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// A value and the line it stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) line: usize,
}

/// The text of a configuration file and what was found wrong with it so far.
pub(super) struct Document<'t> {
    text: &'t str,
    problems: RefCell<Vec<(usize, String)>>,
}

impl<'t> Document<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, problems: RefCell::default() }
    }

    /// Records a problem.
    pub(super) fn problem(&self, line: usize, what: impl Into<String>) {
        // A quoted key may hold anything, and a complaint is one line.
        self.problems.borrow_mut().push((line, one_line(&what.into())));
    }

    pub(super) fn line_of(&self, span: &Range<usize>) -> usize {
        self.text.as_bytes().iter().take(span.start).filter(|&&byte| byte == b'\n').count() + 1
    }

    /// The problems in the order of lines, if there are any.
    pub(super) fn finish(self, file: &Path) -> Result<(), ConfigError> {
        let mut problems = self.problems.into_inner();
        problems.sort();
        problems.dedup();
        if problems.is_empty() { Ok(()) } else { Err(ConfigError { file: file.to_path_buf(), problems }) }
    }
}

/// One table: keys are taken out by name, and what was never asked for is an unknown key.
pub(super) struct Section<'d> {
    pub(super) doc: &'d Document<'d>,
    /// How complaints call it, such as `[[volume]] "data"`.
    pub(super) place: String,
    pub(super) line: usize,
    table: &'d DeTable<'d>,
    known: Vec<&'static str>,
}

impl<'d> Section<'d> {
    pub(super) fn new(doc: &'d Document<'d>, place: impl Into<String>, line: usize, table: &'d DeTable<'d>) -> Self {
        Self { doc, place: place.into(), line, table, known: Vec::new() }
    }

    fn take(&mut self, key: &'static str) -> Option<At<&'d DeValue<'d>>> {
        self.known.push(key);
        let value = self.table.get(key)?;
        Some(At { value: value.get_ref(), line: self.doc.line_of(&value.span()) })
    }

    fn wrong(&self, line: usize, key: &str, found: &DeValue<'_>, right: &str) {
        let found = match found.as_str() {
            Some(text) => format!("{text:?}"),
            None => match found.as_integer() {
                Some(number) => number.as_str().to_owned(),
                None => format!("a {}", found.type_str()),
            },
        };
        self.doc.problem(line, format!("{key} = {found} in {} is not possible; {right}", self.place));
    }

    /// A complaint about a value of this section.
    pub(super) fn problem(&self, line: usize, what: impl fmt::Display) {
        self.doc.problem(line, format!("{}: {what}", self.place));
    }

    /// A complaint that `key` is missing.
    pub(super) fn missing(&self, key: &str, right: &str) {
        self.doc.problem(self.line, format!("{} has no {key}; {right}", self.place));
    }

    /// A text, if the key is there and is a text.
    pub(super) fn string(&mut self, key: &'static str, right: &str) -> Option<At<&'d str>> {
        let At { value, line } = self.take(key)?;
        match value.as_str() {
            Some(value) => Some(At { value, line }),
            None => {
                self.wrong(line, key, value, right);
                None
            }
        }
    }

    /// A text turned into something else by `parse`; `right` says what would be right.
    pub(super) fn parsed<T>(
        &mut self,
        key: &'static str,
        right: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<At<T>> {
        let At { value, line } = self.take(key)?;
        match value.as_str().and_then(parse) {
            Some(value) => Some(At { value, line }),
            None => {
                self.wrong(line, key, value, right);
                None
            }
        }
    }

    /// A list of texts, each turned into something else by `parse`.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        right: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<Vec<At<T>>> {
        let At { value, line } = self.take(key)?;
        let Some(items) = value.as_array() else {
            self.wrong(line, key, value, right);
            return None;
        };
        let mut values = Vec::new();
        for item in items.iter() {
            let line = self.doc.line_of(&item.span());
            match item.get_ref().as_str().and_then(&parse) {
                Some(value) => values.push(At { value, line }),
                None => self.wrong(line, key, item.get_ref(), right),
            }
        }
        Some(values)
    }

    /// A whole number within `allowed`, or `default` when the key is absent or its value is wrong.
    pub(super) fn number(&mut self, key: &'static str, default: u64, allowed: RangeInclusive<u64>) -> At<u64> {
        let Some(At { value, line }) = self.take(key) else { return At { value: default, line: self.line } };
        let number = value.as_integer().and_then(|n| u64::from_str_radix(&n.as_str().replace('_', ""), n.radix()).ok());
        match number.filter(|n| allowed.contains(n)) {
            Some(value) => At { value, line },
            None => {
                let (low, high) = allowed.into_inner();
                let right = format!("it must be a whole number from {low} to {high} (default {default})");
                self.wrong(line, key, value, &right);
                At { value: default, line }
            }
        }
    }

    /// `true` or `false`, or `default`.
    pub(super) fn switch(&mut self, key: &'static str, default: bool) -> bool {
        let Some(At { value, line }) = self.take(key) else { return default };
        value.as_bool().unwrap_or_else(|| {
            self.wrong(line, key, value, "it must be true or false, without quotes");
            default
        })
    }

    /// True when the key is there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// Complains about keys that may not stand beside others of this table.
    pub(super) fn forbid(&mut self, keys: &[&'static str], why: &str) {
        for key in keys.iter().filter(|key| self.table.contains_key(**key)).collect::<Vec<_>>() {
            if let Some(At { line, .. }) = self.take(key) {
                self.problem(line, format!("{key} would do nothing here: {why}"));
            }
        }
    }

    /// The table `[key]`.
    pub(super) fn table(&mut self, key: &'static str) -> Option<Self> {
        let At { value, line } = self.take(key)?;
        let table = value.as_table();
        if table.is_none() {
            self.wrong(line, key, value, &format!("write a table headed [{key}]"));
        }
        Some(Self::new(self.doc, format!("[{key}]"), line, table?))
    }

    /// The tables of an array of tables `[[key]]`.
    pub(super) fn sections(&mut self, key: &'static str) -> Vec<Self> {
        let Some(At { value, line }) = self.take(key) else { return Vec::new() };
        let Some(items) = value.as_array() else {
            self.wrong(line, key, value, &format!("write a table headed [[{key}]] for each"));
            return Vec::new();
        };
        let section = |item: &'d Spanned<DeValue<'d>>| {
            let line = self.doc.line_of(&item.span());
            match item.get_ref().as_table() {
                Some(table) => Some(Self::new(self.doc, format!("[[{key}]]"), line, table)),
                None => {
                    self.wrong(line, key, item.get_ref(), &format!("write a table headed [[{key}]] for each"));
                    None
                }
            }
        };
        items.iter().filter_map(section).collect()
    }

    /// The tables `[... .key.NAME]` below this one, with their names.
    pub(super) fn named(&mut self, key: &'static str) -> Vec<(At<&'d str>, Self)> {
        let Some(At { value, line }) = self.take(key) else { return Vec::new() };
        let right = format!("write a table headed [volume.{key}.NODE] for each node");
        let Some(tables) = value.as_table() else {
            self.wrong(line, key, value, &right);
            return Vec::new();
        };
        let mut found = Vec::new();
        for (name, value) in tables.iter() {
            let line = self.doc.line_of(&name.span());
            let Some(table) = value.get_ref().as_table() else {
                self.wrong(line, name.get_ref(), value.get_ref(), &right);
                continue;
            };
            let place = format!("[volume.{key}.{}]", name.get_ref());
            found.push((At { value: name.get_ref().as_ref(), line }, Self::new(self.doc, place, line, table)));
        }
        found
    }

    /// Complains about every key that was never asked for.
    pub(super) fn finish(self) {
        for (key, _) in self.table.iter() {
            if self.known.contains(&key.get_ref().as_ref()) {
                continue;
            }
            let hint = match suggest::nearest(key.get_ref(), self.known.iter().copied()) {
                Some(word) => format!("did you mean {word:?}?"),
                None => format!("known here are {}", self.known.join(", ")),
            };
            let line = self.doc.line_of(&key.span());
            self.doc.problem(line, format!("unknown key {:?} in {}; {hint}", key.get_ref(), self.place));
        }
    }
}
