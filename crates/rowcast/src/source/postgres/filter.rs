//! `where`: an SQL condition over one row, in PostgreSQL's own words, which PostgreSQL alone evaluates.
//!
//! Whether a row matches must follow from the row alone, for only its own changes are seen. PostgreSQL knows which expressions are so:
//! those that it takes for a generated column. It is asked by a temporary table of the same columns, in a transaction that is rolled back.

use std::time::Duration;

use super::schema::{Table, inputs_of, names_of};
use super::wire::{Connection, Fault, ServerError, code, literal, quoted};

/// Texts that mean another moment each time they are read as a date; then they are constants of the moment at which a session begins.
const MOMENTS: [&str; 4] = ["now", "today", "yesterday", "tomorrow"];

/// How long the server may take for its opinion.
const PATIENCE: Duration = Duration::from_secs(30);

/// A condition that PostgreSQL takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// Its text without comments, whose parentheses close what they open.
    pub text: String,
    /// The columns that are in it.
    pub inputs: Vec<String>,
}

/// The condition of `text`, without comments; the error is a sentence for the user that goes on after "`where`".
///
/// It is one expression whose parentheses close what they open, so that it can be pasted between parentheses.
pub fn expression(text: &str) -> Result<String, String> {
    let mut clean = String::with_capacity(text.len());
    let mut open: Vec<char> = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("--") {
            clean.push(' ');
            rest.find(['\n', '\r']).map_or(rest.len(), |end| end + 1)
        } else if rest.starts_with("/*") {
            clean.push(' ');
            comment(rest).ok_or("has a comment that is never closed")?
        } else if let Some(length) = quotation(rest, clean.chars().next_back()) {
            let length = length.ok_or("has a quotation mark that is never closed")?;
            let mark = if first == '$' { rest[1..].find('$').map_or(0, |end| end + 2) } else { 1 };
            let before = mark + usize::from(matches!(first, 'E' | 'e'));
            let inside = rest[before..length - mark].trim().to_lowercase();
            if !rest.starts_with('"') && MOMENTS.contains(&inside.as_str()) {
                return Err(format!("has the text '{inside}', which may stand for the time at which it is read; write the date itself"));
            }
            clean.push_str(&rest[..length]);
            length
        } else {
            match first {
                '(' | '[' => open.push(first),
                ')' | ']' => match (open.pop(), first) {
                    (Some('('), ')') | (Some('['), ']') => {}
                    _ => return Err(format!("closes with {first} what it does not open")),
                },
                ';' => return Err("is one condition, without a `;`".to_owned()),
                // A statement cannot hold it.
                '\0' => return Err("has a null character in it".to_owned()),
                _ => {}
            }
            // A quotation would go on after the end of a line, in the manner of the one before.
            clean.push(if matches!(first, '\n' | '\r' | '\x0c') { ' ' } else { first });
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    if let Some(sign) = open.last() {
        return Err(format!("opens a {sign} that it does not close"));
    }
    let clean = clean.trim();
    if clean.is_empty() { Err("is empty; leave it out to cache every row".to_owned()) } else { Ok(clean.to_owned()) }
}

/// How long the comment is that stands at the beginning; comments may have comments in them. `None` if it has no end.
fn comment(text: &str) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    loop {
        let rest = &text[at..];
        let length = if rest.starts_with("/*") {
            depth += 1;
            2
        } else if rest.starts_with("*/") {
            depth -= 1;
            2
        } else {
            rest.chars().next()?.len_utf8()
        };
        at += length;
        if depth == 0 {
            return Some(at);
        }
    }
}

/// How long the quotation is that stands at the beginning, if there is one; the inner `None` is one that has no end. `before` is the
/// character before it.
fn quotation(text: &str, before: Option<char>) -> Option<Option<usize>> {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$' || !c.is_ascii());
    if let Some(inside) = text.strip_prefix(['E', 'e']).filter(|_| !in_word).and_then(|rest| rest.strip_prefix('\'')) {
        return Some(closed(inside, '\'', true).map(|end| end + 2));
    }
    match text.chars().next()? {
        sign @ ('\'' | '"') => Some(closed(&text[1..], sign, false).map(|end| end + 1)),
        '$' if !in_word => {
            let tag_end = text[1..].find('$')? + 2;
            let tag = &text[..tag_end];
            let name = &tag[1..tag_end - 1];
            let is_tag =
                name.chars().all(|c| c.is_alphanumeric() || c == '_' || !c.is_ascii()) && !name.starts_with(|c: char| c.is_ascii_digit());
            is_tag.then(|| text[tag_end..].find(tag).map(|end| tag_end + end + tag_end))
        }
        _ => None,
    }
}

/// Where the quotation ends whose inside begins here. A mark inside is written twice, or after a backslash where that means something.
fn closed(inside: &str, mark: char, backslashes: bool) -> Option<usize> {
    let mut characters = inside.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        if character == '\\' && backslashes {
            characters.next();
        } else if character == mark && characters.next_if(|(_, next)| *next == mark).is_none() {
            return Some(at + mark.len_utf8());
        }
    }
    None
}

/// A name that no column of the table has, made of this one.
pub(super) fn free_name(table: &Table, name: &str) -> String {
    let mut name = name.to_owned();
    while table.column(&name).is_some() {
        name.push('_');
    }
    name
}

/// Checks a condition against its table; the inner error is a sentence for the user that goes on after "`where`".
pub(super) async fn compile(connection: &mut Connection, table: &Table, text: &str) -> Result<Result<Filter, String>, Fault> {
    let text = match expression(text) {
        Ok(text) => text,
        Err(why) => return Ok(Err(why)),
    };
    let marker = free_name(table, "rowcast filter");
    let columns: Vec<String> = table
        .columns
        .iter()
        .map(|column| {
            let collation = column.collation.as_ref().map(|name| format!(" COLLATE {name}")).unwrap_or_default();
            format!("{} {}{collation}", quoted(&column.name), column.declared)
        })
        .collect();
    let name = quoted(&table.relation);
    let sql = format!(
        "BEGIN; CREATE TEMPORARY TABLE {name}({}, {} boolean GENERATED ALWAYS AS (({text}) IS TRUE) STORED); \
         SELECT {} FROM pg_attribute a JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
         WHERE a.attrelid = {}::regclass AND a.attname = {}",
        columns.join(", "),
        quoted(&marker),
        inputs_of("a", "d"),
        literal(&format!("pg_temp.{name}")),
        literal(&marker)
    );
    let asked = connection.query(&sql, PATIENCE).await;
    if matches!(asked, Ok(_) | Err(Fault::Refused(_))) {
        connection.query("ROLLBACK", PATIENCE).await?;
    }
    match asked {
        Ok(answers) => {
            let row = answers.first().ok_or_else(|| Fault::Lost("the server did not say what a condition is made of".to_owned()))?;
            let inputs = names_of(row.text(0)?)?;
            if let Some((name, foreign)) = inputs.iter().find_map(|name| Some((name, table.foreign(name)?))) {
                return Ok(Err(format!(
                    "names the column {name} of the type {foreign}, which is not PostgreSQL's own, so that its operators would not be found and \
                     others be used in silence; compare a generated column that is made of it ({name}::text, say)"
                )));
            }
            Ok(Ok(Filter { text, inputs }))
        }
        Err(Fault::Refused(error)) => explain(&error).map(Err).ok_or(Fault::Refused(error)),
        Err(fault) => Err(fault),
    }
}

/// What PostgreSQL's refusal means for the user; `None` where the condition is not to blame. The condition is not shown: something may
/// have been substituted in it.
pub(super) fn explain(error: &ServerError) -> Option<String> {
    let message = &error.message;
    let hint = error.hint.as_ref().map(|hint| format!("; {}", hint.trim_end_matches('.'))).unwrap_or_default();
    Some(match error.code.as_str() {
        code::UNDEFINED_COLUMN => format!("names a column that does not exist ({message}){hint}"),
        code::NOT_IMMUTABLE if message.contains("whole-row") => "takes the row as a whole; compare its columns one by one".to_owned(),
        code::NOT_IMMUTABLE => "has a result that may change by itself (the time now, random, what depends on the session's time zone or \
                                language, functions that are not IMMUTABLE); compare columns, and say the time zone where one is needed \
                                (AT TIME ZONE 'UTC')"
            .to_owned(),
        code::FEATURE_NOT_SUPPORTED if message.contains("set-returning") => {
            format!("has a function that returns rows ({message}); use the columns of the row alone")
        }
        code::FEATURE_NOT_SUPPORTED => {
            "has a subquery, but a change of other rows would not be seen; use the columns of the row alone".to_owned()
        }
        code::GROUPING_ERROR | code::WINDOWING_ERROR => {
            "looks at many rows (an aggregate or a window function); use the columns of the row alone".to_owned()
        }
        code::INVALID_COLUMN_REFERENCE => {
            "uses a column of the system's (ctid and the like), which may change by itself; use a column of the table".to_owned()
        }
        code::DATATYPE_MISMATCH => format!("is no condition ({message}); write one that is true or false"),
        code::UNDEFINED_PARAMETER_NUMBER => "has a parameter ($1), and nobody gives it a value".to_owned(),
        code::UNDEFINED_FUNCTION => format!(
            "uses a function or an operator that does not exist ({message}); those that are not PostgreSQL's own are written with their schema \
             (public.f(x), x OPERATOR(public.+) y)"
        ),
        code::UNDEFINED_TABLE => format!("names another table ({message}); use the columns of the row alone"),
        code::INSUFFICIENT_PRIVILEGE => {
            format!(
                "cannot be checked or evaluated ({message}); let rowcast's user do that (`GRANT TEMPORARY ON DATABASE`, `GRANT EXECUTE ON FUNCTION`)"
            )
        }
        // A value that a literal's type does not take, a division by zero, whatever the row is; and what is no expression.
        code if ["22", "42", "3F", "P0"].iter().any(|class| code.starts_with(class)) => {
            format!("is not a condition that PostgreSQL takes ({message}){hint}")
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_condition_stays_within_its_parentheses_whatever_stands_in_quotes() {
        for (text, clean) in [
            (" active ", "active"),
            ("a = ')' -- ;\n AND b", "a = ')'   AND b"),
            ("a /* ( /* ; */ ) */ = 1", "a   = 1"),
            (r"a = E'\'(' OR e = '\'", r"a = E'\'(' OR e = '\'"),
            (r"name'(' = '\'", r"name'(' = '\'"),
            ("a = $x$ ) ; $y$ $x$", "a = $x$ ) ; $y$ $x$"),
            ("a = $$)$$", "a = $$)$$"),
            ("\"a\"\"(\" = 'it''s ('", "\"a\"\"(\" = 'it''s ('"),
            ("tags[1] = 'x' AND (a)", "tags[1] = 'x' AND (a)"),
            ("data ? 'k' AND a$b = 1", "data ? 'k' AND a$b = 1"),
            ("a -- x\r= 1", "a  = 1"),
            ("a = E'a'\n'\\'' AND b\r\x0cOR c\n'", "a = E'a' '\\'' AND b\r\x0cOR c\n'"),
            ("a\n=\r\x0c'now and then'", "a =  'now and then'"),
        ] {
            assert_eq!(expression(text).as_deref(), Ok(clean), "{text}");
        }
        for (text, said) in [
            ("", "empty"),
            ("-- nothing", "empty"),
            ("a = 'x", "quotation"),
            (r"a = E'\'", "quotation"),
            ("a = $x$ ) $y$", "quotation"),
            ("a /* /* */", "comment"),
            ("a) OR (b", "does not open"),
            ("a[1)", "does not open"),
            ("(a", "does not close"),
            ("a; DROP TABLE t", "`;`"),
            ("a = '\\'; x'", "`;`"),
            ("a\0", "null"),
            ("at > 'now'", "'now'"),
            ("at > E' Today ' AND b", "'today'"),
            ("at > $x$tomorrow$x$::timestamptz", "'tomorrow'"),
        ] {
            assert!(expression(text).is_err_and(|error| error.contains(said)), "{text}: {:?}", expression(text));
        }
    }
}
