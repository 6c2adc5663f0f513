//! Types made of types: arrays, domains, composites, enumerations, ranges, nested as chance has it.

use super::chance::Chance;
use super::scalars::{RANGES, SCALARS, Scalar, quoted};

#[derive(Clone)]
pub enum Shape {
    Scalar(&'static Scalar),
    Array(Box<Shape>),
    Domain { name: String, base: Box<Shape> },
    Composite { name: String, attributes: Vec<Shape> },
    Enumeration { name: String, labels: Vec<String> },
    Range { name: String, multi: Option<String>, subtype: Box<Shape> },
}

/// The statements that make types.
#[derive(Default)]
pub struct Definitions {
    pub sql: String,
    made: usize,
}

impl Definitions {
    fn name(&mut self, kind: &str) -> String {
        self.made += 1;
        // Names that need quotes; a range's multirange is named after it.
        format!("public.\"{kind} {}\"", self.made)
    }

    pub fn domain(&mut self, base: Shape) -> Shape {
        let name = self.name("Domain");
        self.sql += &format!("CREATE DOMAIN {name} AS {};\n", base.name());
        Shape::Domain { name, base: Box::new(base) }
    }

    pub fn composite(&mut self, attributes: Vec<Shape>) -> Shape {
        let name = self.name("composite");
        let names = ["a", "\"B\"\"\\ {\"", "\"日本\"", "\"a\n\"", "e", "f"];
        let columns: Vec<String> = attributes.iter().zip(names).map(|(shape, column)| format!("{column} {}", shape.name())).collect();
        self.sql += &format!("CREATE TYPE {name} AS ({});\n", columns.join(", "));
        Shape::Composite { name, attributes }
    }

    pub fn enumeration(&mut self, chance: &mut Chance) -> Shape {
        let name = self.name("enum");
        let labels: Vec<String> = (0..3).map(|index| format!("{index}{}", chance.text().chars().take(10).collect::<String>())).collect();
        let listed: Vec<String> = labels.iter().map(|label| quoted(label)).collect();
        self.sql += &format!("CREATE TYPE {name} AS ENUM ({});\n", listed.join(", "));
        Shape::Enumeration { name, labels }
    }

    pub fn range(&mut self, subtype: Shape, multi: bool) -> Shape {
        let name = self.name("range");
        self.sql += &format!("CREATE TYPE {name} AS RANGE (SUBTYPE = {});\n", subtype.name());
        let multi = multi.then(|| name.replace("range", "multirange"));
        Shape::Range { name, multi, subtype: Box::new(subtype) }
    }

    /// Any type, with parts within parts up to `depth`.
    pub fn random(&mut self, chance: &mut Chance, depth: usize) -> Shape {
        if depth == 0 {
            return Shape::scalar(chance);
        }
        match chance.count(0..=9) {
            0 => self.enumeration(chance),
            1 => {
                let ordered: Vec<&Scalar> = SCALARS.iter().filter(|scalar| scalar.ordered).collect();
                let subtype = if chance.one_in(3) { self.enumeration(chance) } else { Shape::Scalar(chance.of(&ordered)) };
                self.range(subtype, chance.one_in(2))
            }
            2..=4 => {
                let attributes = (0..chance.count(0..=5)).map(|_| self.random(chance, depth - 1)).collect();
                self.composite(attributes)
            }
            5 | 6 => {
                let base = self.random(chance, depth - 1);
                self.domain(base)
            }
            _ => match self.random(chance, depth - 1) {
                // An array of arrays is no type; of a domain over arrays it is.
                array @ Shape::Array(_) => Shape::Array(Box::new(self.domain(array))),
                element => Shape::Array(Box::new(element)),
            },
        }
    }
}

impl Shape {
    fn scalar(chance: &mut Chance) -> Shape {
        Shape::Scalar(&SCALARS[chance.count(0..=SCALARS.len() - 1)])
    }

    pub fn built_in_ranges() -> impl Iterator<Item = Shape> {
        RANGES.iter().flat_map(|(name, multi, subtype)| {
            let subtype = SCALARS.iter().find(|scalar| scalar.name == *subtype).unwrap();
            [None, Some((*multi).to_owned())].map(|multi| Shape::Range {
                name: (*name).to_owned(),
                multi,
                subtype: Box::new(Shape::Scalar(subtype)),
            })
        })
    }

    pub fn name(&self) -> String {
        match self {
            Shape::Scalar(scalar) => scalar.name.to_owned(),
            Shape::Array(element) => format!("{}[]", element.name()),
            Shape::Domain { name, .. }
            | Shape::Composite { name, .. }
            | Shape::Enumeration { name, .. }
            | Shape::Range { multi: Some(name), .. }
            | Shape::Range { name, .. } => name.clone(),
        }
    }

    /// An SQL expression for a value, which may be NULL.
    pub fn expression(&self, chance: &mut Chance) -> String {
        if chance.one_in(8) {
            return format!("NULL::{}", self.name());
        }
        let plain = match self {
            Shape::Scalar(scalar) => (scalar.expression)(chance),
            Shape::Array(element) => return array(element, chance),
            Shape::Domain { base, .. } => base.expression(chance),
            Shape::Composite { attributes, .. } => {
                let parts: Vec<String> = attributes.iter().map(|attribute| attribute.expression(chance)).collect();
                format!("ROW({})", parts.join(", "))
            }
            Shape::Enumeration { labels, .. } => quoted(&labels[chance.count(0..=labels.len() - 1)]),
            Shape::Range { name, multi: None, subtype } => range(name, subtype, chance),
            Shape::Range { name, multi: Some(multi), subtype } => {
                let ranges: Vec<String> = (0..chance.count(0..=2)).map(|_| range(name, subtype, chance)).collect();
                format!("{multi}({})", ranges.join(", "))
            }
        };
        format!("({plain})::{}", self.name())
    }
}

fn range(name: &str, subtype: &Shape, chance: &mut Chance) -> String {
    if chance.one_in(6) {
        return format!("'empty'::{name}");
    }
    let (one, other) = (subtype.expression(chance), subtype.expression(chance));
    // Where values are counted, other bounds are made to be these, for which the greatest value leaves no room.
    let counted = matches!(subtype, Shape::Scalar(Scalar { name: "int4" | "int8" | "date", .. }));
    let bounds = if counted { "[)" } else { chance.of(&["[)", "[]", "(]", "()"]) };
    // An end that is NULL is no end.
    format!("{name}(least({one}, {other}), CASE WHEN {} THEN greatest({one}, {other}) END, '{bounds}')", !chance.one_in(4))
}

fn array(element: &Shape, chance: &mut Chance) -> String {
    let name = format!("{}[]", element.name());
    let dimensions = chance.of(&[0, 1, 1, 1, 2, 3]);
    if dimensions == 0 {
        return format!("'{{}}'::{name}");
    }
    let lengths: Vec<usize> = (0..dimensions).map(|_| chance.count(1..=3)).collect();
    let made = format!("({})::{name}", constructor(element, &lengths, chance));
    if chance.one_in(4) {
        let bounds: String = lengths
            .iter()
            .map(|length| {
                let low = chance.integer(-5..=5);
                format!("[{low}:{}]", low - 1 + i64::try_from(*length).unwrap())
            })
            .collect();
        return format!("('{bounds}=' || ({made})::text)::{name}");
    }
    made
}

fn constructor(element: &Shape, lengths: &[usize], chance: &mut Chance) -> String {
    let Some((length, inner)) = lengths.split_first() else { return element.expression(chance) };
    let parts: Vec<String> = (0..*length).map(|_| constructor(element, inner, chance)).collect();
    format!("ARRAY[{}]", parts.join(", "))
}
