//! What is wrong with a configuration, and how it is told.

use std::fmt;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The sentence.
    pub message: String,
    /// Where; nowhere if something is missing altogether.
    pub place: Option<Place>,
}

/// A place in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file as it was named.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The line, less what could be a secret.
    pub excerpt: String,
    /// How many characters are meant.
    pub width: usize,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Place { file, line, column, excerpt, width }) = &self.place else { return f.write_str(&self.message) };
        let number = line.to_string();
        let margin = " ".repeat(number.len());
        // Tabs stay tabs, so that the caret stands under what it means whatever their width.
        let before: String = excerpt.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        writeln!(f, "{file}:{line}:{column}: {}", self.message)?;
        writeln!(f, "{margin} |")?;
        writeln!(f, "{number} | {excerpt}")?;
        write!(f, "{margin} | {before}{}", "^".repeat(*width))
    }
}

/// Where the settings of a table stand, for what only the database can tell of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TablePlaces {
    pub(super) name: Place,
    pub(super) key: Option<Place>,
    pub(super) columns: Option<Place>,
    pub(super) filter: Option<Place>,
}

/// Everything that is wrong with a configuration, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// At least one.
    pub findings: Vec<Finding>,
}

impl Error {
    /// The file itself is the trouble.
    pub(super) fn of_file(message: String) -> Error {
        Error { findings: vec![Finding { message, place: None }] }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.findings.iter().enumerate() {
            if index > 0 {
                f.write_str("\n\n")?;
            }
            finding.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}
