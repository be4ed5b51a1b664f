//! A strict JSON reader over bytes (RFC 8259): a cursor that hands out strings and numbers without building values.
//!
//! Nothing here recurses, so nesting costs no stack; values that are skipped are checked as closely as values that are
//! read.

use std::borrow::Cow;

use crate::error::{Error, ErrorKind, Result};
use crate::number::{Number, plain_decimal};

/// Deepest nesting of arrays and objects in a value that is skipped.
pub const MAX_DEPTH: u32 = 64;

/// How much of a text from outside an error repeats, in characters.
const SHOWN: usize = 60;

/// A place in a body that was found to be UTF-8.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    text: &'a str,
    at: usize,
}

/// The `expected ..., found ...` error at a byte.
#[cold]
pub(crate) fn mismatch(expected: &'static str, found: String, position: usize) -> Error {
    Error::at(ErrorKind::Json { expected, found }, position)
}

/// The beginning of a text from outside, for an error.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl<'a> Reader<'a> {
    /// A reader at the first byte of a body.
    ///
    /// # Errors
    /// At the first byte that is not UTF-8.
    pub fn new(body: &'a [u8]) -> Result<Self> {
        match std::str::from_utf8(body) {
            Ok(text) => Ok(Self { text, at: 0 }),
            Err(error) => {
                let at = error.valid_up_to();
                let byte = body.get(at).copied().unwrap_or_default();
                Err(mismatch("expected UTF-8", format!("byte 0x{byte:02x}"), at))
            }
        }
    }

    /// Byte offset of the next byte to read.
    #[must_use]
    pub fn position(&self) -> usize {
        self.at
    }

    /// The same body from another byte on.
    #[must_use]
    pub fn from_position(&self, position: usize) -> Self {
        Self { text: self.text, at: position.min(self.text.len()) }
    }

    /// How many bytes are left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.text.len() - self.at
    }

    #[inline]
    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Skip white space and look at the next byte.
    #[inline]
    pub fn peek(&mut self) -> Option<u8> {
        loop {
            match self.byte() {
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.at += 1,
                other => return other,
            }
        }
    }

    /// Skip white space and take the next byte if it is this one.
    #[inline]
    pub fn take(&mut self, wanted: u8) -> bool {
        let found = self.peek() == Some(wanted);
        self.at += usize::from(found);
        found
    }

    /// Skip white space and take the next byte, which must be this one.
    ///
    /// # Errors
    /// With `expected` where another byte comes.
    #[inline]
    pub fn require(&mut self, wanted: u8, expected: &'static str) -> Result<()> {
        if self.take(wanted) { Ok(()) } else { Err(self.unexpected(expected)) }
    }

    /// Take the next bytes if they are these: a quoted key that is expected here.
    #[inline]
    pub fn take_exact(&mut self, wanted: &[u8]) -> bool {
        let found = self.text.as_bytes()[self.at..].starts_with(wanted);
        if found {
            self.at += wanted.len();
        }
        found
    }

    /// The body ends here.
    ///
    /// # Errors
    /// Where more than white space follows.
    pub fn end(&mut self) -> Result<()> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.unexpected("expected the end of the document")),
        }
    }

    /// What stands here instead of what was expected.
    #[cold]
    #[must_use]
    pub fn unexpected(&self, expected: &'static str) -> Error {
        mismatch(expected, self.describe(), self.at)
    }

    /// A phrase for what stands here.
    #[must_use]
    pub fn describe(&self) -> String {
        let rest = &self.text[self.at..];
        let Some(first) = rest.chars().next() else { return "the end of the document".to_owned() };
        match first {
            '{' => "an object".to_owned(),
            '[' => "an array".to_owned(),
            '"' => match self.clone().string() {
                Ok(text) => format!("the string {:?}", shorten(&text)),
                Err(_) => "a broken string".to_owned(),
            },
            _ => {
                let length = rest.find(|c: char| !c.is_alphanumeric() && !"+-.".contains(c)).unwrap_or(rest.len());
                shorten(if length == 0 { &rest[..first.len_utf8()] } else { &rest[..length] })
            }
        }
    }

    /// After `[` or `{`: whether an element comes, or the closing byte was taken.
    #[inline]
    pub fn first(&mut self, close: u8) -> bool {
        !self.take(close)
    }

    /// After an element: whether another one comes (a comma was taken), or the closing byte was taken.
    ///
    /// # Errors
    /// Where neither comes.
    #[inline]
    pub fn more(&mut self, close: u8) -> Result<bool> {
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                Ok(true)
            }
            Some(byte) if byte == close => {
                self.at += 1;
                Ok(false)
            }
            _ if close == b']' => Err(self.unexpected("expected ',' or ']'")),
            _ => Err(self.unexpected("expected ',' or '}'")),
        }
    }

    /// Take a key and its colon.
    ///
    /// # Errors
    /// Where no string or no colon comes.
    pub fn key(&mut self) -> Result<Cow<'a, str>> {
        if self.peek() != Some(b'"') {
            return Err(self.unexpected("expected a key in double quotes"));
        }
        let key = self.string()?;
        self.colon()?;
        Ok(key)
    }

    /// Take a colon.
    ///
    /// # Errors
    /// Where none comes.
    #[inline]
    pub fn colon(&mut self) -> Result<()> {
        self.require(b':', "expected ':'")
    }

    /// Take a string: borrowed from the body, unless it has escapes.
    ///
    /// # Errors
    /// Where no string comes, at control characters, unknown escapes and lone surrogates.
    #[inline]
    pub fn string(&mut self) -> Result<Cow<'a, str>> {
        self.require(b'"', "expected a string")?;
        let start = self.at;
        let end = self.plain_end();
        if self.text.as_bytes().get(end) == Some(&b'"') {
            self.at = end + 1;
            return Ok(Cow::Borrowed(&self.text[start..end]));
        }
        self.escaped(start).map(Cow::Owned)
    }

    /// The next quote, backslash, control character or the end.
    #[inline]
    fn plain_end(&self) -> usize {
        let rest = &self.text.as_bytes()[self.at..];
        self.at + rest.iter().position(|&b| b == b'"' || b == b'\\' || b < 0x20).unwrap_or(rest.len())
    }

    #[cold]
    fn escaped(&mut self, start: usize) -> Result<String> {
        let mut text = String::new();
        self.at = start;
        loop {
            let end = self.plain_end();
            text.push_str(&self.text[self.at..end]);
            self.at = end;
            match self.byte() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(text);
                }
                Some(b'\\') => text.push(self.escape()?),
                Some(byte) => {
                    let found = format!("control character 0x{byte:02x}");
                    return Err(mismatch("expected control characters to be escaped", found, self.at));
                }
                None => return Err(self.unexpected("expected the string to be closed")),
            }
        }
    }

    fn escape(&mut self) -> Result<char> {
        const EXPECTED: &str = "expected an escape of JSON";
        let start = self.at;
        self.at += 1;
        let plain = match self.byte() {
            Some(byte @ (b'"' | b'\\' | b'/')) => char::from(byte),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.at += 1;
                return self.unicode(start);
            }
            _ => return Err(mismatch(EXPECTED, shorten(&self.text[start..]), start)),
        };
        self.at += 1;
        Ok(plain)
    }

    /// After `\u`: one code unit, or two that are a surrogate pair.
    fn unicode(&mut self, start: usize) -> Result<char> {
        let lone = || mismatch("expected a pair of surrogates", "a lone one".to_owned(), start);
        let first = self.hex4(start)?;
        if !(0xD800..0xE000).contains(&first) {
            return char::from_u32(first).ok_or_else(lone);
        }
        if first >= 0xDC00 || !self.take_exact(b"\\u") {
            return Err(lone());
        }
        let second = self.hex4(start)?;
        if !(0xDC00..0xE000).contains(&second) {
            return Err(lone());
        }
        char::from_u32(0x1_0000 + ((first - 0xD800) << 10) + (second - 0xDC00)).ok_or_else(lone)
    }

    fn hex4(&mut self, start: usize) -> Result<u32> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4).unwrap_or_default();
        let value = digits.iter().try_fold(0, |sum, &b| Some(sum * 16 + char::from(b).to_digit(16)?));
        match value {
            Some(value) if digits.len() == 4 => {
                self.at += 4;
                Ok(value)
            }
            _ => Err(mismatch("expected four hexadecimal digits", "fewer".to_owned(), start)),
        }
    }

    /// Take a number.
    ///
    /// # Errors
    /// Where no number of JSON comes.
    #[inline]
    pub fn number(&mut self) -> Result<Number<'a>> {
        self.peek();
        match Number::scan(&self.text[self.at..]) {
            Ok((number, length)) => {
                self.at += length;
                Ok(number)
            }
            Err(expected) => Err(self.unexpected(expected)),
        }
    }

    /// Take a number that is a plain decimal; nothing is taken of any other.
    #[inline]
    pub fn plain(&mut self) -> Option<f64> {
        self.peek();
        let (value, length) = plain_decimal(&self.text.as_bytes()[self.at..])?;
        self.at += length;
        Some(value)
    }

    /// Take a number as the nearest double; infinite where it is too large.
    ///
    /// # Errors
    /// Where no number of JSON comes.
    #[inline]
    pub fn double(&mut self) -> Result<f64> {
        match self.plain() {
            Some(value) => Ok(value),
            None => self.number().map(|number| number.to_f64()),
        }
    }

    /// Take `true`, `false` or `null` if it comes next, as a whole word.
    #[inline]
    pub fn take_word(&mut self, word: &'static str) -> bool {
        self.peek();
        self.take_exact(word.as_bytes())
    }

    /// Take any value, checking it, and forget it.
    ///
    /// # Errors
    /// Where it is not JSON, or nested deeper than [`MAX_DEPTH`].
    pub fn skip(&mut self) -> Result<()> {
        self.skip_with(&["true", "false", "null"])
    }

    /// The same for the data of a tensor, in which numbers may also be what Python writes for those that JSON lacks.
    ///
    /// # Errors
    /// As `skip`.
    pub fn skip_data(&mut self) -> Result<()> {
        self.skip_with(&["true", "false", "null", "NaN", "Infinity", "-Infinity"])
    }

    fn skip_with(&mut self, words: &[&'static str]) -> Result<()> {
        let mut objects = 0_u64; // the open containers, innermost lowest: 1 for an object
        let mut depth = 0;
        loop {
            if let Some(close) = self.skip_opening(words)? {
                if depth == MAX_DEPTH {
                    return Err(self.unexpected("expected at most 64 levels of nesting"));
                }
                if self.first(close) {
                    objects = objects << 1 | u64::from(close == b'}');
                    depth += 1;
                    if close == b'}' {
                        self.key()?;
                    }
                    continue;
                }
            }
            loop {
                if depth == 0 {
                    return Ok(());
                }
                let close = if objects & 1 == 1 { b'}' } else { b']' };
                if self.more(close)? {
                    if close == b'}' {
                        self.key()?;
                    }
                    break;
                }
                objects >>= 1;
                depth -= 1;
            }
        }
    }

    /// Take a scalar, or the opening byte of a container: then what closes it.
    fn skip_opening(&mut self, words: &[&'static str]) -> Result<Option<u8>> {
        match self.peek() {
            Some(b'{') => {
                self.at += 1;
                return Ok(Some(b'}'));
            }
            Some(b'[') => {
                self.at += 1;
                return Ok(Some(b']'));
            }
            Some(b'"') => drop(self.string()?),
            Some(b'0'..=b'9') => drop(self.number()?),
            _ if words.iter().any(|word| self.take_word(word)) => {}
            Some(b'-') => drop(self.number()?),
            _ => return Err(self.unexpected("expected a value")),
        }
        Ok(None)
    }
}
