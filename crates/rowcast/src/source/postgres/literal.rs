//! The text forms of arrays, composites and hstores, taken apart as their output functions write them. Pure; nothing is allocated.

/// A text that its type's output function would not have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// A part's text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken<'t> {
    /// As it is.
    Plain(&'t str),
    /// What stood between quotes, with escapes in it.
    Escaped(&'t str),
}

impl<'t> Taken<'t> {
    /// The text itself; it stands in `room` where escapes had to be left out.
    pub(super) fn plain<'p>(self, room: &'p mut String) -> &'p str
    where
        't: 'p,
    {
        match self {
            Taken::Plain(text) => text,
            Taken::Escaped(text) => {
                room.clear();
                unescape(text, room);
                room
            }
        }
    }
}

/// Every backslash or quote stands before the character that is meant.
fn unescape(text: &str, room: &mut String) {
    let bytes = text.as_bytes();
    let (mut plain, mut at) = (0, 0);
    while at < bytes.len() {
        if matches!(bytes[at], b'\\' | b'"') {
            room.push_str(&text[plain..at]);
            plain = at + 1;
            at += 1;
        }
        at += 1;
    }
    room.push_str(&text[plain.min(text.len())..]);
}

/// Reads from the front. It stops at ASCII characters only, so every place is the beginning of a character.
struct Reader<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Reader<'t> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn expect(&mut self, word: &str) -> Result<(), Malformed> {
        if !self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
            return Err(Malformed);
        }
        self.at += word.len();
        Ok(())
    }

    /// Up to the closing quote; the opening one comes next. A doubled quote means one where `doubled` says so.
    fn quoted(&mut self, doubled: bool) -> Result<Taken<'t>, Malformed> {
        self.expect("\"")?;
        let bytes = self.text.as_bytes();
        let begin = self.at;
        let mut escaped = false;
        loop {
            match bytes.get(self.at).ok_or(Malformed)? {
                b'"' if doubled && bytes.get(self.at + 1) == Some(&b'"') => {
                    escaped = true;
                    self.at += 2;
                }
                b'"' => break,
                b'\\' => {
                    escaped = true;
                    self.at += 2;
                }
                _ => self.at += 1,
            }
        }
        let content = &self.text[begin..self.at];
        self.at += 1;
        Ok(if escaped { Taken::Escaped(content) } else { Taken::Plain(content) })
    }

    /// Up to a character that ends it; what would have been quoted is refused.
    fn unquoted(&mut self, ends: impl Fn(u8) -> bool, never: &[u8]) -> Result<&'t str, Malformed> {
        let rest = &self.text.as_bytes()[self.at..];
        let length = rest.iter().position(|byte| ends(*byte) || never.contains(byte)).ok_or(Malformed)?;
        if length == 0 || !ends(rest[length]) {
            return Err(Malformed);
        }
        let begin = self.at;
        self.at += length;
        Ok(&self.text[begin..self.at])
    }
}

/// A piece of an array, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ArrayPart<'t> {
    /// A dimension begins.
    Open,
    /// It ends.
    Close,
    /// Between two elements, or two dimensions.
    Delimiter,
    /// An element that is NULL.
    Null,
    /// An element.
    Element(Taken<'t>),
}

/// What may come next in an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// A dimension or an element, or the end of an empty one.
    First,
    /// A dimension or an element.
    Value,
    /// A delimiter or the end of the dimension.
    Rest,
}

/// Reads an array, `[0:1]={1,NULL,"3"}`.
pub(super) struct Array<'t> {
    reader: Reader<'t>,
    /// An ASCII character.
    delimiter: u8,
    depth: usize,
    next: Next,
}

impl<'t> Array<'t> {
    pub(super) fn new(text: &'t str, delimiter: u8) -> Result<Array<'t>, Malformed> {
        // Bounds stand in front where they do not begin at 1.
        let at = if text.starts_with('[') { text.find('=').ok_or(Malformed)? + 1 } else { 0 };
        let array = Array { reader: Reader { text, at }, delimiter, depth: 0, next: Next::Value };
        if array.reader.peek() == Some(b'{') { Ok(array) } else { Err(Malformed) }
    }

    /// The next part; `None` at the end.
    pub(super) fn part(&mut self) -> Result<Option<ArrayPart<'t>>, Malformed> {
        let Some(byte) = self.reader.peek() else {
            return if self.depth == 0 { Ok(None) } else { Err(Malformed) };
        };
        // Nothing may stand behind the last brace.
        if self.depth == 0 && self.next != Next::Value {
            return Err(Malformed);
        }
        let part = match (byte, self.next) {
            (b'{', Next::First | Next::Value) => {
                self.depth += 1;
                self.skip(Next::First, ArrayPart::Open)
            }
            (b'}', Next::First | Next::Rest) => {
                self.depth -= 1;
                self.skip(Next::Rest, ArrayPart::Close)
            }
            (byte, Next::Rest) if byte == self.delimiter => self.skip(Next::Value, ArrayPart::Delimiter),
            (_, Next::Rest) => return Err(Malformed),
            (b'"', _) => {
                self.next = Next::Rest;
                ArrayPart::Element(self.reader.quoted(false)?)
            }
            _ => {
                self.next = Next::Rest;
                let delimiter = self.delimiter;
                match self.reader.unquoted(|byte| byte == b'}' || byte == delimiter, b"{\"\\")? {
                    "NULL" => ArrayPart::Null,
                    text => ArrayPart::Element(Taken::Plain(text)),
                }
            }
        };
        Ok(Some(part))
    }

    fn skip(&mut self, next: Next, part: ArrayPart<'t>) -> ArrayPart<'t> {
        self.reader.at += 1;
        self.next = next;
        part
    }
}

/// Reads a composite, `(1,,"3")`.
pub(super) struct Composite<'t> {
    reader: Reader<'t>,
    first: bool,
}

impl<'t> Composite<'t> {
    pub(super) fn new(text: &'t str) -> Result<Composite<'t>, Malformed> {
        let mut reader = Reader { text, at: 0 };
        reader.expect("(")?;
        Ok(Composite { reader, first: true })
    }

    /// The next attribute; `None` where it is NULL.
    pub(super) fn attribute(&mut self) -> Result<Option<Taken<'t>>, Malformed> {
        if !std::mem::take(&mut self.first) {
            self.reader.expect(",")?;
        }
        match self.reader.peek().ok_or(Malformed)? {
            b',' | b')' => Ok(None),
            b'"' => self.reader.quoted(true).map(Some),
            _ => self.reader.unquoted(|byte| matches!(byte, b',' | b')'), b"(\"\\").map(|text| Some(Taken::Plain(text))),
        }
    }

    /// Nothing may follow the last attribute.
    pub(super) fn end(mut self) -> Result<(), Malformed> {
        self.reader.expect(")")?;
        if self.reader.peek().is_none() { Ok(()) } else { Err(Malformed) }
    }
}

/// Reads an hstore, `"a"=>"1", "b"=>NULL`.
pub(super) struct Hstore<'t>(Reader<'t>);

impl<'t> Hstore<'t> {
    pub(super) fn new(text: &'t str) -> Hstore<'t> {
        Hstore(Reader { text, at: 0 })
    }

    /// The next key and its value; `None` at the end.
    pub(super) fn pair(&mut self) -> Result<Option<(Taken<'t>, Option<Taken<'t>>)>, Malformed> {
        let reader = &mut self.0;
        if reader.peek().is_none() {
            return Ok(None);
        }
        if reader.at > 0 {
            reader.expect(", ")?;
        }
        let key = reader.quoted(false)?;
        reader.expect("=>")?;
        let value = if reader.peek() == Some(b'N') { reader.expect("NULL").map(|()| None) } else { reader.quoted(false).map(Some) };
        Ok(Some((key, value?)))
    }
}
