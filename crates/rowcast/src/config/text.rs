//! Texts of a configuration, and what may stand for them: `${ENV}` anywhere in one, `file:/path` as the whole.

use std::env::VarError;
use std::ops::Range;

use toml::Spanned;
use toml::de::DeValue;

use super::document::{Document, Section};

/// A text with every substitution made.
pub(super) struct Text {
    pub(super) value: String,
    pub(super) span: Range<usize>,
    /// Whether it stands in the file just so. What does not may be a secret, and is never shown.
    pub(super) literal: bool,
}

impl Text {
    /// The text for a message.
    pub(super) fn shown(&self) -> String {
        if self.literal { format!("{:?}", self.value) } else { "what was substituted for it".to_owned() }
    }
}

/// Where `${ENV}` comes from.
pub(super) type Environment<'e> = &'e dyn Fn(&str) -> Result<String, VarError>;

impl<'d> Document<'d> {
    /// The text under `key`; `None` where there is none or it is wrong.
    pub(super) fn text(&mut self, section: &Section<'d>, key: &str, environment: Environment<'_>) -> Option<Text> {
        let value = section.table.get(key)?;
        self.text_of(key, value, environment)
    }

    /// The same where it must be there.
    pub(super) fn required(&mut self, section: &Section<'d>, key: &str, example: &str, environment: Environment<'_>) -> Option<Text> {
        if !section.table.contains_key(key) {
            self.wrong(section.place.clone(), format!("{} has no `{key}`; write for instance {example}", section.name));
        }
        self.text(section, key, environment)
    }

    /// A list of texts.
    pub(super) fn texts(&mut self, section: &Section<'d>, key: &str, environment: Environment<'_>) -> Option<Vec<Text>> {
        let value = section.table.get(key)?;
        let DeValue::Array(values) = value.get_ref() else {
            self.wrong_type(key, value, r#"a list, such as ["id", "name"]"#);
            return None;
        };
        // All are looked at, so that every fault is named.
        let texts: Vec<Option<Text>> = values.iter().map(|value| self.text_of(key, value, environment)).collect();
        texts.into_iter().collect()
    }

    fn text_of(&mut self, key: &str, value: &Spanned<DeValue<'_>>, environment: Environment<'_>) -> Option<Text> {
        let DeValue::String(written) = value.get_ref() else {
            self.wrong_type(key, value, "a text in quotes");
            return None;
        };
        match substitute(written, environment) {
            Ok(substituted) => {
                let literal = substituted.is_none();
                Some(Text { value: substituted.unwrap_or_else(|| written.to_string()), span: value.span(), literal })
            }
            Err(message) => {
                self.wrong(value.span(), message);
                None
            }
        }
    }
}

/// `None` where there is nothing to substitute.
fn substitute(written: &str, environment: Environment<'_>) -> Result<Option<String>, String> {
    if let Some(path) = written.strip_prefix("file:").filter(|path| path.starts_with('/')) {
        return match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned())),
            Err(error) => Err(format!("the file {path} cannot be read: {error}")),
        };
    }
    let mut text = String::new();
    let mut rest = written;
    while let Some((before, after)) = rest.split_once("${") {
        let (name, after) = after.split_once('}').ok_or("`${` without its `}`; an environment variable is written ${NAME}")?;
        text.push_str(before);
        match environment(name) {
            Ok(value) => text.push_str(&value),
            Err(VarError::NotPresent) => return Err(format!("the environment variable {name} is not set")),
            Err(VarError::NotUnicode(_)) => return Err(format!("the environment variable {name} is not valid UTF-8")),
        }
        rest = after;
    }
    if rest.len() == written.len() {
        return Ok(None);
    }
    text.push_str(rest);
    Ok(Some(text))
}
