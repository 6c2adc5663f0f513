//! The little of SQL's grammar that is needed to take a CREATE INDEX apart and to look into an expression, and the writing of names.
//! Pure.

/// A name or number as it stands in an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// Without its quotes.
    pub(super) name: String,
    start: usize,
    end: usize,
}

/// A name in double quotes.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// One lexical piece.
enum Piece {
    /// A bare word, or a name in any of SQLite's quotes, without them.
    Name(String, bool),
    /// A string or any single character.
    Other(char),
}

/// The text with every comment made a blank, so that it can be pasted anywhere.
pub(super) fn without_comments(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("--") {
            clean.push(' ');
            rest.find('\n').map_or(rest.len(), |end| end + 1)
        } else if let Some(comment) = rest.strip_prefix("/*") {
            clean.push(' ');
            comment.find("*/").map_or(rest.len(), |end| end + 4)
        } else {
            let length = quote_end(rest).unwrap_or(first.len_utf8());
            clean.push_str(&rest[..length]);
            length
        };
        rest = &rest[length..];
    }
    clean
}

/// Where a quoted piece at the beginning of `text` ends; `None` if there is none.
fn quote_end(text: &str) -> Option<usize> {
    let open = text.chars().next()?;
    let close = match open {
        '\'' | '"' | '`' => open,
        '[' => return Some(text.find(']').map_or(text.len(), |end| end + 1)),
        _ => return None,
    };
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((at, character)) = characters.next() {
        if character == close && characters.next_if(|(_, next)| *next == close).is_none() {
            return Some(at + 1);
        }
    }
    Some(text.len())
}

/// The pieces of a text without comments, with where they begin and end.
fn pieces(text: &str) -> Vec<(Piece, usize, usize)> {
    let mut pieces = Vec::new();
    let mut start = 0;
    while let Some(first) = text[start..].chars().next() {
        let rest = &text[start..];
        let word = |c: char| c.is_alphanumeric() || c == '_' || c == '$' || !c.is_ascii();
        let (piece, length) = if let Some(length) = quote_end(rest) {
            let inside = rest.get(1..length.saturating_sub(1)).unwrap_or_default();
            match first {
                '\'' => (Piece::Other('\''), length),
                '[' => (Piece::Name(inside.to_owned(), true), length),
                _ => (Piece::Name(inside.replace(&format!("{first}{first}"), &first.to_string()), true), length),
            }
        } else if word(first) {
            let length = rest.find(|c| !word(c)).unwrap_or(rest.len());
            (Piece::Name(rest[..length].to_owned(), false), length)
        } else {
            (Piece::Other(first), first.len_utf8())
        };
        if !matches!(piece, Piece::Other(c) if c.is_whitespace()) {
            pieces.push((piece, start, start + length));
        }
        start += length;
    }
    pieces
}

/// Every name in an expression: columns, functions, keywords.
pub(super) fn names(text: &str) -> Vec<Token> {
    let named = |(piece, start, end)| match piece {
        Piece::Name(name, _) => Some(Token { name, start, end }),
        Piece::Other(_) => None,
    };
    pieces(text).into_iter().filter_map(named).collect()
}

/// Whether every quotation mark and every comment is closed.
pub(super) fn is_closed(text: &str) -> bool {
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("--") {
            rest.find('\n').map_or(rest.len(), |end| end + 1)
        } else if let Some(comment) = rest.strip_prefix("/*") {
            let Some(end) = comment.find("*/") else { return false };
            end + 4
        } else if let Some(length) = quote_end(rest) {
            // A quotation mark inside is written twice.
            let closed = if first == '[' { rest[..length].ends_with(']') } else { rest[..length].matches(first).count().is_multiple_of(2) };
            if !closed {
                return false;
            }
            length
        } else {
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    true
}

/// The signs of an expression without comments: parentheses, commas and the like, without what is quoted.
pub(super) fn signs(text: &str) -> impl Iterator<Item = char> {
    pieces(text).into_iter().filter_map(|(piece, ..)| match piece {
        Piece::Other(sign) if sign != '\'' => Some(sign),
        _ => None,
    })
}

/// The functions of date and time, and how many arguments each has before it takes the time now instead of a given one.
const TIME_FUNCTIONS: [(&str, usize); 7] =
    [("date", 1), ("time", 1), ("datetime", 1), ("julianday", 1), ("unixepoch", 1), ("strftime", 2), ("timediff", 2)];

/// The words by which they take the time now, or the clock of the machine.
const TIME_WORDS: [&str; 5] = ["now", "subsec", "subsecond", "localtime", "utc"];

/// The function of date and time that an expression without comments asks for what no row says: the time now or the local one.
pub(super) fn call_of_now(text: &str) -> Option<&'static str> {
    let pieces = pieces(text);
    for (index, (piece, ..)) in pieces.iter().enumerate() {
        let Piece::Name(name, _) = piece else { continue };
        let Some((function, least)) = TIME_FUNCTIONS.into_iter().find(|(function, _)| name.eq_ignore_ascii_case(function)) else {
            continue;
        };
        let Some((Piece::Other('('), ..)) = pieces.get(index + 1) else { continue };
        let (mut depth, mut commas, mut any) = (0_usize, 0, false);
        for (piece, start, end) in &pieces[index + 1..] {
            match piece {
                Piece::Other('(') => depth += 1,
                Piece::Other(')') if depth <= 1 => break,
                Piece::Other(')') => depth -= 1,
                Piece::Other(',') if depth == 1 => commas += 1,
                Piece::Other('\'') if TIME_WORDS.iter().any(|word| text[*start + 1..*end - 1].eq_ignore_ascii_case(word)) => {
                    return Some(function);
                }
                _ => any = true,
            }
        }
        let arguments = if any || commas > 0 { commas + 1 } else { 0 };
        if arguments < least {
            return Some(function);
        }
    }
    None
}

/// A column's default as an expression: a bare word, or a name in double quotes, is a text there.
pub(super) fn default_value(default: &str) -> String {
    const WORDS: [&str; 6] = ["true", "false", "null", "current_time", "current_date", "current_timestamp"];
    match pieces(default).as_slice() {
        [(Piece::Name(name, in_quotes), start, _)] => {
            let value = !in_quotes
                && (default[*start..].starts_with(|c: char| c.is_ascii_digit())
                    || WORDS.iter().any(|word| name.eq_ignore_ascii_case(word)));
            if value { default.to_owned() } else { format!("'{}'", name.replace('\'', "''")) }
        }
        _ => default.to_owned(),
    }
}

/// The expressions of a CREATE INDEX, without ASC and DESC, and the text after WHERE.
pub(super) fn split_create_index(text: &str) -> (Vec<String>, Option<String>) {
    let text = without_comments(text);
    let mut parts = Vec::new();
    let mut depth = 0_usize;
    let mut begin = 0;
    let mut partial = None;
    for (piece, start, end) in pieces(&text) {
        match piece {
            Piece::Other('(') => {
                depth += 1;
                if depth == 1 && parts.is_empty() {
                    begin = end;
                }
            }
            Piece::Other(')') => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    parts.push(without_order(&text[begin..start]));
                }
            }
            Piece::Other(',') if depth == 1 => {
                parts.push(without_order(&text[begin..start]));
                begin = end;
            }
            Piece::Name(word, false) if depth == 0 && !parts.is_empty() && word.eq_ignore_ascii_case("where") => {
                partial = Some(text[end..].trim().to_owned());
                break;
            }
            _ => {}
        }
    }
    (parts, partial)
}

fn without_order(part: &str) -> String {
    let last = names(part).pop().filter(|last| {
        let order = last.name.eq_ignore_ascii_case("asc") || last.name.eq_ignore_ascii_case("desc");
        order && last.start > 0 && last.end - last.start == last.name.len() && part[last.end..].trim().is_empty()
    });
    last.map_or(part, |last| &part[..last.start]).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_is_taken_apart() {
        let split = |text| {
            let (parts, partial) = split_create_index(text);
            (parts.join(" | "), partial.unwrap_or_default())
        };
        assert_eq!(split("CREATE UNIQUE INDEX i ON t(a)"), ("a".into(), String::new()));
        assert_eq!(
            split(
                "CREATE UNIQUE INDEX \"i(\" ON [t,(] (lower(a) COLLATE NOCASE DESC, b /* ) */ asc, \"desc\")  WHERE (x) AND y = ')' -- end"
            ),
            ("lower(a) COLLATE NOCASE | b | \"desc\"".into(), "(x) AND y = ')'".into())
        );
        assert_eq!(split("CREATE UNIQUE INDEX i ON t(coalesce(a, 'it''s, (')) where b"), ("coalesce(a, 'it''s, (')".into(), "b".into()));
    }

    #[test]
    fn a_default_that_is_a_name_is_a_text() {
        for (default, value) in [
            ("abc", "'abc'"),
            ("\"it's\"", "'it''s'"),
            ("[a b]", "'a b'"),
            ("TRUE", "TRUE"),
            ("current_timestamp", "current_timestamp"),
            ("7", "7"),
            ("-7", "-7"),
            ("1.5e3", "1.5e3"),
            ("x'00'", "x'00'"),
            ("'a'", "'a'"),
            ("1+1", "1+1"),
            ("lower('A')", "lower('A')"),
        ] {
            assert_eq!(default_value(default), value);
        }
    }

    #[test]
    fn names_are_found_in_every_kind_of_quotes() {
        let names: Vec<String> = names("a+\"b\"\"c\" || [d e]||`f`||'g'").into_iter().map(|token| token.name).collect();
        assert_eq!(names, ["a", "b\"c", "d e", "f"]);
    }

    #[test]
    fn what_is_never_closed_is_found() {
        for text in ["a = 'it''s'", "\"a\"\"b\"", "[a'b]", "`a`", "a -- 'b", "a /* ' */ b", "x'00'"] {
            assert!(is_closed(text), "{text}");
        }
        for text in ["'", "'a''", "\"a", "[a", "`", "/* a", "a /* * /", "'é"] {
            assert!(!is_closed(text), "{text}");
        }
    }

    #[test]
    fn the_time_now_is_found_however_it_is_asked_for() {
        for text in [
            "a > date('now')",
            "a > DATETIME( 'NOW', '-1 day')",
            "julianday()>a",
            "unixepoch ( ) > a",
            "strftime('%s') > a",
            "datetime(a, 'localtime') > b",
            "time(coalesce(a, 'now')) > b",
            "abs(julianday(a) - julianday('subsec')) < 1",
            "\"date\"() > a",
        ] {
            assert!(call_of_now(text).is_some(), "{text}");
        }
        for text in [
            "date(a) > '2020-01-01'",
            "a = 'now'",
            "strftime('%Y', a) > 2000",
            "date > 1",
            "time = now",
            "datetime(a, 'start of day') > b",
            "timediff(a, b) > 0",
        ] {
            assert_eq!(call_of_now(text), None, "{text}");
        }
    }
}
