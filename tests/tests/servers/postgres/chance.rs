//! Chance from a seed, and the raw matter of values: numbers near their limits, texts that need every kind of quoting.

use std::ops::RangeInclusive;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub struct Chance(StdRng);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        Chance(StdRng::seed_from_u64(seed))
    }

    pub fn one_in(&mut self, many: u32) -> bool {
        self.0.random_range(0..many) == 0
    }

    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.0.random_range(0..choices.len())]
    }

    pub fn count(&mut self, range: RangeInclusive<usize>) -> usize {
        self.0.random_range(range)
    }

    /// Small, at an end of the range, or anything in it.
    pub fn integer(&mut self, range: RangeInclusive<i64>) -> i64 {
        let (low, high) = (*range.start(), *range.end());
        match self.0.random_range(0..4) {
            0 => self.0.random_range(-3..=3).clamp(low, high),
            1 => self.of(&[low, high]),
            _ => self.0.random_range(range),
        }
    }

    pub fn byte(&mut self) -> u8 {
        self.0.random()
    }

    pub fn digits(&mut self, count: usize) -> String {
        (0..count).map(|_| char::from(b'0' + self.0.random_range(0..10_u8))).collect()
    }

    pub fn hex(&mut self, bytes: usize) -> String {
        (0..bytes).map(|_| format!("{:02x}", self.byte())).collect()
    }

    /// As SQL reads it.
    pub fn float(&mut self) -> String {
        match self.0.random_range(0..5) {
            0 => self.of(&["NaN", "Infinity", "-Infinity", "0", "-0", "1e300", "-1e-300", "5e-324", "123456789012345678"]).to_owned(),
            1 => self.integer(-1_000_000..=1_000_000).to_string(),
            2 => format!("{}.{}", self.integer(-999..=999), self.digits(3)),
            _ => loop {
                let number = f64::from_bits(self.0.random());
                if number.is_finite() {
                    break format!("{number:e}");
                }
            },
        }
    }

    pub fn numeric(&mut self) -> String {
        let sign = self.of(&["", "-"]);
        match self.0.random_range(0..6) {
            0 => self.of(&["NaN", "Infinity", "-Infinity", "0", "0.000", "1e-500", "1e1000", "-1.10"]).to_owned(),
            1 => format!("{sign}{}", self.digits(1000)),
            2 => format!("{sign}0.{}", self.digits(1000)),
            _ => {
                let (whole, fraction) = (self.count(1..=25), self.count(0..=12));
                format!("{sign}{}.{}", self.digits(whole), self.digits(fraction))
            }
        }
    }

    /// Any text that a database takes: everything but the zero character.
    pub fn text(&mut self) -> String {
        if self.one_in(40) {
            // Not compressed within the row, but put aside.
            return self.hex(6000) + &self.text();
        }
        let words =
            ["NULL", "null", "\"", "\\", "\\\\", "\"\"", "{", "}", "(", ")", ",", ";", " ", "=>", "[", "]", "'", "\t", "\n", "\r", ""];
        let mut text = String::new();
        for _ in 0..self.count(0..=6) {
            match self.0.random_range(0..6) {
                0 | 1 => text.push_str(self.of(&words)),
                2 => text.push(char::from(self.0.random_range(1..0x80_u8))),
                3 => text.push(char::from(self.0.random_range(1..0x20_u8))),
                4 => text.push(self.character(0x80..=0xffff)),
                _ => text.push(self.character(0x1_0000..=0x10_ffff)),
            }
        }
        text
    }

    fn character(&mut self, range: RangeInclusive<u32>) -> char {
        let ends = [*range.start(), *range.end()];
        loop {
            let code = if self.one_in(8) { self.of(&ends) } else { self.0.random_range(range.clone()) };
            if let Some(character) = char::from_u32(code) {
                return character;
            }
        }
    }

    /// Letters and what may stand between them, for types that are particular about texts.
    pub fn words(&mut self) -> String {
        let count = self.count(1..=4);
        (0..count).map(|_| self.of(&["a", "Bc", "é", "日本", "x1", "\"q", "b\\c", "🎵"])).collect::<Vec<_>>().join(" ")
    }

    /// A JSON text as somebody might write it: white space anywhere, names twice, escapes that need not be.
    pub fn json(&mut self, depth: usize) -> String {
        let space = |chance: &mut Chance| chance.of(&["", "", " ", "\n", "\t "]);
        let value = match self.0.random_range(0..if depth == 0 { 3 } else { 5 }) {
            0 => self.of(&["null", "true", "false", "0", "-0", "1.10", "1e400", "-1E-5", "12345678901234567890"]).to_owned(),
            1 => self.of(&[r#""""#, r#""\u0041\/\n""#, r#""\ud83c\udfb5""#, r#""a\"b\\""#, r#""é 日本 🎵""#]).to_owned(),
            2 => serde_json::to_string(&self.text()).unwrap(),
            3 => {
                let items: Vec<String> = (0..self.count(0..=3)).map(|_| self.json(depth - 1)).collect();
                format!("[{}]", items.join(","))
            }
            _ => {
                let count = self.count(0..=3);
                let fields: Vec<String> = (0..count)
                    .map(|_| format!("{}\"{}\"{}:{}", space(self), self.of(&["a", "a", "b\\n", "é"]), space(self), self.json(depth - 1)))
                    .collect();
                format!("{{{}}}", fields.join(","))
            }
        };
        format!("{}{value}{}", space(self), space(self))
    }
}
