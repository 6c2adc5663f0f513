//! What a look at source, broker or cache finds: how grave it is, what it concerns, and what mends it.
//!
//! This module imports no other room.

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Grade {
    /// The pipeline cannot run like this.
    Stops,
    /// It runs, and something suffers.
    Harms,
    /// Good to know.
    Notes,
}

impl Grade {
    /// One word for it.
    pub fn name(self) -> &'static str {
        match self {
            Grade::Stops => "stops",
            Grade::Harms => "harms",
            Grade::Notes => "notes",
        }
    }
}

/// Which setting of a table a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Setting {
    /// Its name.
    Name,
    /// Its key.
    Key,
    /// Its columns.
    Columns,
    /// Its filter.
    Where,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How grave it is.
    pub grade: Grade,
    /// The table, by its place among the configured ones, and which of its settings does not fit; `None` where no line of the
    /// configuration is to blame.
    pub about: Option<(usize, Setting)>,
    /// What is so.
    pub message: String,
    /// What mends it: a command, or what to change. `None` where nothing needs mending, or the message says it.
    pub remedy: Option<String>,
}

impl Finding {
    /// A finding without a remedy of its own.
    pub fn new(grade: Grade, message: impl Into<String>) -> Finding {
        Finding { grade, about: None, message: message.into(), remedy: None }
    }

    /// Takes a sentence of the form "what is so; what to do" apart.
    pub fn of_sentence(grade: Grade, sentence: &str) -> Finding {
        let finding = |message: &str, remedy: Option<&str>| Finding { remedy: remedy.map(str::to_owned), ..Finding::new(grade, message) };
        match sentence.split_once("; ") {
            Some((message, remedy)) => finding(message, Some(remedy)),
            None => finding(sentence, None),
        }
    }

    /// The same with what mends it.
    pub fn mend(self, remedy: impl Into<String>) -> Finding {
        Finding { remedy: Some(remedy.into()), ..self }
    }

    /// The same about a setting of the table at `table` among the configured ones.
    pub fn about(self, table: usize, setting: Setting) -> Finding {
        Finding { about: Some((table, setting)), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_is_what_is_so_and_what_to_do() {
        let finding = Finding::of_sentence(Grade::Stops, "the file is gone; bring it back; or not");
        assert_eq!((finding.message.as_str(), finding.remedy.as_deref()), ("the file is gone", Some("bring it back; or not")));
        assert_eq!(Finding::of_sentence(Grade::Notes, "all is well"), Finding::new(Grade::Notes, "all is well"));
    }
}
