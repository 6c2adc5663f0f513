//! The text of a configuration with what is wrong with it so far.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::excerpt;
use super::finding::{Error, Finding, Place};
use crate::mapping::nearest;

/// A file that is being read.
pub(super) struct Document<'d> {
    file: String,
    text: &'d str,
    /// With the byte where it is, for the order.
    findings: Vec<(usize, Finding)>,
}

/// A table of the file.
#[derive(Clone)]
pub(super) struct Section<'d> {
    /// As it is written (`[broker]`).
    pub(super) name: &'static str,
    /// Where it begins.
    pub(super) place: Range<usize>,
    pub(super) table: &'d DeTable<'d>,
}

impl<'d> Document<'d> {
    pub(super) fn new(file: String, text: &'d str) -> Document<'d> {
        Document { file, text, findings: Vec::new() }
    }

    /// The error, if anything was found.
    pub(super) fn finish(self) -> Result<(), Error> {
        let mut findings = self.findings;
        findings.sort_by_key(|(at, _)| *at);
        if findings.is_empty() { Ok(()) } else { Err(Error { findings: findings.into_iter().map(|(_, finding)| finding).collect() }) }
    }

    /// Something is wrong at this place.
    pub(super) fn wrong(&mut self, span: Range<usize>, message: String) {
        let place = self.place(&span);
        self.findings.push((span.start, Finding { message, place: Some(place) }));
    }

    /// Something is missing altogether.
    pub(super) fn missing(&mut self, message: String) {
        self.findings.push((self.text.len(), Finding { message: format!("{}: {message}", self.file), place: None }));
    }

    /// Where that is.
    pub(super) fn place(&self, span: &Range<usize>) -> Place {
        let start = span.start.min(self.text.len());
        let line_start = self.text[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let line = self.text[line_start..].lines().next().unwrap_or_default();
        let excerpt = excerpt::of(line);
        let column = 1 + self.text[line_start..start].chars().count();
        let meant = self.text.get(start..span.end).map_or(1, |meant| meant.lines().next().unwrap_or_default().chars().count());
        // What is hidden is not pointed at.
        let column = column.min(excerpt.chars().count() + 1);
        let width = meant.min((excerpt.chars().count() + 1).saturating_sub(column)).max(1);
        Place { file: self.file.clone(), line: 1 + self.text[..start].matches('\n').count(), column, excerpt, width }
    }

    /// Names every key that is not among `known`.
    pub(super) fn check_keys(&mut self, section: &Section<'_>, known: &[&str]) {
        for key in section.table.keys() {
            let name: &str = key.get_ref();
            if !known.contains(&name) {
                self.wrong(key.span(), format!("unknown key `{name}` in {}{}", section.name, hint(name, known)));
            }
        }
    }

    /// A whole number.
    pub(super) fn number(&mut self, section: &Section<'d>, key: &str, range: Range<i64>) -> Option<i64> {
        let value = section.table.get(key)?;
        let DeValue::Integer(digits) = value.get_ref() else {
            self.wrong_type(key, value, "a whole number");
            return None;
        };
        let number = i64::from_str_radix(digits.as_str(), digits.radix()).ok().filter(|number| range.contains(number));
        if number.is_none() {
            self.wrong(value.span(), format!("`{key}` is a number from {} to {}", range.start, range.end - 1));
        }
        number
    }

    pub(super) fn wrong_type(&mut self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str) {
        self.wrong(value.span(), format!("`{key}` is {wanted}, not {}", type_name(value.get_ref())));
    }
}

/// The near word, as the end of a sentence.
pub(super) fn hint(word: &str, known: &[&str]) -> String {
    nearest(word, known.iter().copied()).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default()
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text in quotes",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}
