//! What a server refuses, and what becomes of a connection.

use std::fmt;

use bytes::Bytes;

use super::super::super::Error;

/// SQLSTATE codes that mean something to a source.
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>
pub(in super::super) mod code {
    pub const INSUFFICIENT_PRIVILEGE: &str = "42501";
    pub const UNDEFINED_TABLE: &str = "42P01";
    pub const UNDEFINED_COLUMN: &str = "42703";
    pub const UNDEFINED_OBJECT: &str = "42704";
    pub const UNDEFINED_PARAMETER: &str = "08P01";
    pub const INVALID_PASSWORD: &str = "28P01";
    pub const INVALID_AUTHORIZATION: &str = "28000";
    pub const NO_SUCH_DATABASE: &str = "3D000";
    pub const UNIQUE_VIOLATION: &str = "23505";
    pub const OBJECT_IN_USE: &str = "55006";
    pub const NOT_IN_PREREQUISITE_STATE: &str = "55000";
    pub const LOCK_NOT_AVAILABLE: &str = "55P03";
    pub const QUERY_CANCELED: &str = "57014";
    /// What begins like this is a value that its type does not take.
    pub const CLASS_DATA: &str = "22";
    /// What begins like this is a constraint that does not hold; outside of tables that is a domain's.
    pub const CLASS_CONSTRAINT: &str = "23";
    /// A function of the user's has raised it; outside of tables that is one that a domain's check calls.
    pub const RAISED: &str = "P0001";
    /// What begins like this is a statement that exceeds what the server can do: one value that makes it too large, say.
    pub const CLASS_LIMIT: &str = "54";
    pub const FEATURE_NOT_SUPPORTED: &str = "0A000";
    /// An expression that must not change by itself does, or takes in the whole row.
    pub const NOT_IMMUTABLE: &str = "42P17";
    pub const GROUPING_ERROR: &str = "42803";
    pub const WINDOWING_ERROR: &str = "42P20";
    pub const INVALID_COLUMN_REFERENCE: &str = "42P10";
    pub const DATATYPE_MISMATCH: &str = "42804";
    pub const UNDEFINED_PARAMETER_NUMBER: &str = "42P02";
    pub const UNDEFINED_FUNCTION: &str = "42883";
    /// What begins like this comes from a function of the user's.
    pub const CLASS_RAISED: &str = "P0";
    pub const CONFIGURATION_LIMIT_EXCEEDED: &str = "53400";
}

/// What the server says is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct ServerError {
    /// FATAL and PANIC end the connection.
    pub severity: String,
    /// SQLSTATE.
    pub code: String,
    /// The sentence.
    pub message: String,
    /// More of it.
    pub detail: Option<String>,
    /// What the server advises.
    pub hint: Option<String>,
}

impl ServerError {
    /// Reads the fields of an ErrorResponse or a NoticeResponse.
    pub fn read(payload: &Bytes) -> ServerError {
        let mut error = ServerError { severity: String::new(), code: String::new(), message: String::new(), detail: None, hint: None };
        let mut unlocalised = None;
        for field in payload.split(|byte| *byte == 0) {
            let Some((&kind, text)) = field.split_first() else { continue };
            let text = String::from_utf8_lossy(text).into_owned();
            match kind {
                b'S' => error.severity = text,
                b'V' => unlocalised = Some(text),
                b'C' => error.code = text,
                b'M' => error.message = text,
                b'D' => error.detail = Some(text),
                b'H' => error.hint = Some(text),
                _ => {}
            }
        }
        error.severity = unlocalised.unwrap_or(error.severity);
        error
    }

    /// Whether the server closes the connection after it.
    pub fn is_final(&self) -> bool {
        matches!(self.severity.as_str(), "FATAL" | "PANIC")
    }

    /// Whether the values of a row may be to blame. A function of the user's may raise any code; the server's own trouble is not of a row.
    pub fn may_be_of_row(&self) -> bool {
        !is_of_server(&self.code)
    }

    /// Whether the values are to blame for sure: a type does not take one, an expression fails on it, a function raises its ordinary error,
    /// or something becomes too large.
    pub fn is_of_values(&self) -> bool {
        [code::CLASS_DATA, code::CLASS_CONSTRAINT, code::CLASS_RAISED, code::CLASS_LIMIT].iter().any(|class| self.code.starts_with(class))
    }
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(detail) = &self.detail {
            write!(f, " ({})", detail.trim_end_matches('.'))?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {}", hint.trim_end_matches('.'))?;
        }
        Ok(())
    }
}

/// Why a server did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Fault {
    /// It refused; the connection goes on.
    Refused(Box<ServerError>),
    /// The server ended the connection, or refused to begin it.
    Ended(Box<ServerError>),
    /// The connection is over, or never came to be; why.
    Lost(String),
    /// It can never work like this; what to do.
    Hopeless(String),
}

impl Fault {
    /// The SQLSTATE, if the server gave one.
    pub fn code(&self) -> Option<&str> {
        match self {
            Fault::Refused(error) | Fault::Ended(error) => Some(&error.code),
            Fault::Lost(_) | Fault::Hopeless(_) => None,
        }
    }

    /// The same as one that may pass: what the server refuses now it was asked to try out before.
    pub fn passing(self) -> Fault {
        match self {
            Fault::Refused(error) => Fault::Lost(error.to_string()),
            fault => fault,
        }
    }

    /// The same as the error of a source; `doing` goes on after the place: "reading the catalogue".
    pub fn explain(self, place: &str, doing: &str) -> Error {
        let text = match &self {
            Fault::Refused(error) | Fault::Ended(error) => format!("PostgreSQL at {place}: {doing}: {error}"),
            Fault::Lost(why) | Fault::Hopeless(why) => format!("PostgreSQL at {place}: {doing}: {why}"),
        };
        match &self {
            Fault::Lost(_) => Error::Busy(text),
            Fault::Hopeless(_) => Error::Fatal(text),
            Fault::Refused(error) | Fault::Ended(error) if may_pass(&error.code) => Error::Busy(text),
            Fault::Refused(_) | Fault::Ended(_) => Error::Fatal(text),
        }
    }
}

/// Whether the same may succeed a moment later: the server starts, stops, is full, or somebody holds what we need.
fn may_pass(code: &str) -> bool {
    is_of_server(code) && !matches!(code, code::UNDEFINED_PARAMETER | code::CONFIGURATION_LIMIT_EXCEEDED)
        || matches!(code, code::OBJECT_IN_USE | code::LOCK_NOT_AVAILABLE)
}

/// 08 connection, 40 rollback, 53 resources, 57 operator intervention, 58 system errors (a full disk), XX inside the server.
fn is_of_server(code: &str) -> bool {
    matches!(code.get(..2).unwrap_or_default(), "08" | "40" | "53" | "57" | "58" | "XX")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_read_field_by_field() {
        let payload = Bytes::from_static(b"SFEHLER\0VERROR\0C42P01\0Mrelation \"x\" does not exist\0DMore.\0HTry y.\0P15\0\0");
        let error = ServerError::read(&payload);
        assert_eq!((error.code.as_str(), error.is_final()), (code::UNDEFINED_TABLE, false));
        assert_eq!(error.to_string(), "relation \"x\" does not exist (More); Try y");
        assert!(
            matches!(Fault::Refused(Box::new(error)).explain("h:1/d", "reading"), Error::Fatal(text) if text.contains("h:1/d: reading"))
        );
    }

    #[test]
    fn what_may_pass_is_tried_again() {
        for (code, passes) in [("57P03", true), ("53300", true), ("53400", false), ("28P01", false), ("55006", true), ("08P01", false)] {
            assert_eq!(may_pass(code), passes, "{code}");
        }
    }
}
