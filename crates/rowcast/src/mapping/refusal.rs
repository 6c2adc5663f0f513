//! Why a template cannot be used, and why a row has no key.

/// Why a template cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// No `{column}` in it.
    #[error("the key {0:?} names no column, so every row would share it; write for instance {0}:{{id}}")]
    NoColumn(String),
    /// Braces that do not pair.
    #[error("the key {0:?} has an unpaired brace; a column is written {{name}}")]
    Brace(String),
    /// Two columns touch.
    #[error(
        "the key {text:?} has nothing between {{{left}}} and {{{right}}}, so two rows could share a key; put a character between them, such as :"
    )]
    Touching {
        /// The template.
        text: String,
        /// The first of the two.
        left: String,
        /// The second of the two.
        right: String,
    },
    /// A literal after a column that could be taken for a part of its value.
    #[error(
        "the key {text:?} goes on with {literal:?} after {{{column}}}, which could be a part of its value; begin with a sign, such as :"
    )]
    Separator {
        /// The template.
        text: String,
        /// The column.
        column: String,
        /// What follows it.
        literal: String,
    },
    /// A character that could not be told from an encoded value.
    #[error("the key {text:?} has {character:?} outside braces; letters, digits and : / . _ - @ + # = , ; ~ are possible")]
    Literal {
        /// The template.
        text: String,
        /// The character in question.
        character: char,
    },
    /// The prefix is rowcast's own.
    #[error("the key {0:?} begins with rowcast:, where rowcast keeps its own keys; choose another prefix")]
    Reserved(String),
    /// The column is not there.
    #[error("the key {text:?} names the column {column}, which does not exist{near}", near = near.as_ref().map(|n| format!("; did you mean {n}?")).unwrap_or_default())]
    UnknownColumn {
        /// The template.
        text: String,
        /// The column.
        column: String,
        /// The column with the nearest name.
        near: Option<String>,
    },
    /// A type name that this version does not know.
    #[error("{0:?} is not a column type that this version of rowcast knows")]
    UnknownType(String),
}

/// Why a row has no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A null part.
    #[error("the key's column {0} is null")]
    Null(String),
    /// An empty part.
    #[error("the key's column {0} is empty")]
    Empty(String),
    /// A value of another type than the column's.
    #[error("the key's column {column} holds {found}, not {expected}; two rows could share a key")]
    Type {
        /// The column.
        column: String,
        /// What the row holds.
        found: &'static str,
        /// What the template expects.
        expected: &'static str,
    },
}
