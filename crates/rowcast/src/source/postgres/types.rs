//! What the catalogue says of types, and the plans that are compiled from it. Pure.

use std::collections::HashMap;
use std::fmt::Write;

use serde::Deserialize;

use super::values::{Attribute, Plan, Shape};
use crate::batch::push_json_text;
use crate::mapping::ColumnType;

/// What the catalogue said of some types, and of all that they are made of.
#[derive(Clone, Debug, Default)]
pub struct Catalogue(HashMap<u32, Type>);

/// A row of `pg_type`, as [`query`] writes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Type {
    oid: u32,
    /// As `format_type` prints it: with its schema unless that is `pg_catalog`.
    name: String,
    kind: Kind,
    /// What a domain is over.
    base: u32,
    /// What a true array holds; 0 for everything else.
    element: u32,
    /// What a range or multirange spans; 0 for everything else.
    subtype: u32,
    /// What separates values of this type in an array.
    delimiter: String,
    /// Where a function casts it to `json`: that function.
    cast: Option<Cast>,
    /// Of a composite, in order.
    attributes: Vec<(String, u32)>,
    /// Of an enumeration, in order.
    labels: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Kind {
    #[serde(rename = "b")]
    Base,
    #[serde(rename = "c")]
    Composite,
    #[serde(rename = "d")]
    Domain,
    #[serde(rename = "e")]
    Enumeration,
    #[serde(rename = "p")]
    Pseudo,
    #[serde(rename = "r")]
    Range,
    #[serde(rename = "m")]
    Multirange,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cast {
    function: String,
    /// Whether it is the one of the extension hstore.
    hstore: bool,
}

/// The statement that reads what [`Catalogue::read`] takes: one row with one column. It needs no right but to connect, and a session with
/// the pinned settings: on the search path depends whether a type's name has its schema.
///
/// PostgreSQL itself looks for a cast to `json` only where a type is not built in, and only if a function does it.
pub fn query(types: impl IntoIterator<Item = u32>) -> String {
    let mut oids = String::new();
    for oid in types {
        let comma = if oids.is_empty() { "" } else { "," };
        write!(oids, "{comma}{oid}").expect("a String takes every write");
    }
    format!(
        "WITH RECURSIVE needed(oid) AS (
           SELECT unnest('{{{oids}}}'::oid[])
           UNION
           SELECT part.oid FROM needed JOIN pg_catalog.pg_type t ON t.oid = needed.oid, LATERAL (
             SELECT t.typbasetype AS oid WHERE t.typtype = 'd'
             UNION ALL
             SELECT t.typelem WHERE t.typelem <> 0 AND t.typsubscript = 'pg_catalog.array_subscript_handler'::regproc
             UNION ALL
             SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)
             UNION ALL
             SELECT a.atttypid FROM pg_catalog.pg_attribute a
             WHERE a.attrelid = t.typrelid AND t.typrelid <> 0 AND a.attnum > 0 AND NOT a.attisdropped
           ) part
         )
         SELECT coalesce(json_agg(json_build_object(
           'oid', t.oid::bigint, 'name', pg_catalog.format_type(t.oid, NULL), 'kind', t.typtype, 'base', t.typbasetype::bigint,
           'element', CASE WHEN t.typsubscript = 'pg_catalog.array_subscript_handler'::regproc THEN t.typelem::bigint ELSE 0 END,
           'subtype', coalesce((
             SELECT r.rngsubtype::bigint FROM pg_catalog.pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid)), 0),
           'delimiter', t.typdelim,
           'cast', CASE WHEN t.oid >= 16384 THEN (
             SELECT json_build_object('function', c.castfunc::regprocedure::text, 'hstore', p.proname = 'hstore_to_json' AND EXISTS (
               SELECT FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON d.refclassid = 'pg_catalog.pg_extension'::regclass
                 AND d.refobjid = e.oid
               WHERE d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e' AND e.extname = 'hstore'))
             FROM pg_catalog.pg_cast c JOIN pg_catalog.pg_proc p ON p.oid = c.castfunc
             WHERE c.castsource = t.oid AND c.casttarget = 'pg_catalog.json'::regtype AND c.castmethod = 'f') END,
           'attributes', coalesce((
             SELECT json_agg(json_build_array(a.attname, a.atttypid::bigint) ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
             WHERE a.attrelid = t.typrelid AND t.typrelid <> 0 AND a.attnum > 0 AND NOT a.attisdropped), '[]'),
           'labels', coalesce((
             SELECT json_agg(e.enumlabel ORDER BY e.enumsortorder) FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid), '[]')
         )), '[]')::text
         FROM (SELECT DISTINCT oid FROM needed) n JOIN pg_catalog.pg_type t ON t.oid = n.oid"
    )
}

/// Why a type's values cannot be converted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `row_to_json` calls a function for it that only the database has.
    #[error("values of its type {type_name} become JSON by the function {function}, a cast to json, which only the database can run")]
    Cast {
        /// The type, or the one of a part.
        type_name: String,
        /// The function.
        function: String,
    },
    /// It has no values that could be stored.
    #[error("its type {0} is a pseudo-type")]
    Pseudo(String),
    /// The arrays of the type cannot be taken apart.
    #[error("the arrays of its type {type_name} separate their elements by {delimiter:?}, which an element could hold")]
    Delimiter {
        /// The type of the elements.
        type_name: String,
        /// The delimiter.
        delimiter: String,
    },
    /// The catalogue that was read does not have it.
    #[error(
        "its type, or a part of it, with the id {0} was not in the catalogue; if it was made a moment ago, this passes with a new session"
    )]
    Unknown(u32),
    /// A type that is its own part.
    #[error("its type {0} is too deeply nested")]
    Deep(String),
}

/// PostgreSQL's sources know these types by their ids, which never change.
mod oid {
    pub(super) const BOOL: u32 = 16;
    pub(super) const INT8: u32 = 20;
    pub(super) const INT2: u32 = 21;
    pub(super) const INT2VECTOR: u32 = 22;
    pub(super) const INT4: u32 = 23;
    pub(super) const OIDVECTOR: u32 = 30;
    pub(super) const JSON: u32 = 114;
    pub(super) const FLOAT4: u32 = 700;
    pub(super) const FLOAT8: u32 = 701;
    pub(super) const TIMESTAMP: u32 = 1114;
    pub(super) const TIMESTAMPTZ: u32 = 1184;
    pub(super) const NUMERIC: u32 = 1700;
    pub(super) const JSONB: u32 = 3802;
    /// Of these even JSON has a text that depends on the settings of the session that writes it: floats, `money`, `interval`.
    pub(super) const BY_SESSION: [u32; 4] = [FLOAT4, FLOAT8, 790, 1186];
    /// Names of things in the catalogue (`regclass` and its like, `aclitem`): two may print the same name, and a thing that is renamed
    /// prints another.
    pub(super) const NAMES: [u32; 12] = [24, 1033, 2202, 2203, 2204, 2205, 2206, 3734, 3769, 4089, 4096, 4191];
}

/// Types within types. PostgreSQL forbids a type that holds itself, so that only a damaged catalogue has more.
const DEEPEST: usize = 64;

impl Catalogue {
    /// Reads the answer to [`query`].
    pub fn read(answer: &str) -> Result<Catalogue, serde_json::Error> {
        let types: Vec<Type> = serde_json::from_str(answer)?;
        Ok(Catalogue(types.into_iter().map(|found| (found.oid, found)).collect()))
    }

    /// How the values of a type become JSON.
    pub fn plan(&self, oid: u32) -> Result<Plan, Refusal> {
        let shape = self.shape(oid, 0)?;
        let mut definition = String::new();
        self.define(&mut definition, oid)?;
        let base = self.base(oid)?;
        let key = key_type(base.oid, &shape);
        let by_session = oid::BY_SESSION.contains(&base.oid) || matches!(base.kind, Kind::Range | Kind::Multirange);
        let foreign = self.foreign(oid)?.map(|found| found.name.clone());
        Ok(Plan { shape, type_name: self.get(oid)?.name.clone(), definition, key, by_session, foreign })
    }

    /// The base type of the user's or an extension's that a type is or has within. The nesting was checked before.
    fn foreign(&self, oid: u32) -> Result<Option<&Type>, Refusal> {
        let found = self.base(oid)?;
        if found.element != 0 {
            return self.foreign(found.element);
        }
        for (_, attribute) in &found.attributes {
            if let Some(foreign) = self.foreign(*attribute)? {
                return Ok(Some(foreign));
            }
        }
        Ok(Some(found).filter(|found| found.kind == Kind::Base && found.oid >= FIRST_NOT_BUILT_IN))
    }

    fn get(&self, oid: u32) -> Result<&Type, Refusal> {
        self.0.get(&oid).ok_or(Refusal::Unknown(oid))
    }

    /// What a domain is over in the end; every other type itself.
    fn base(&self, oid: u32) -> Result<&Type, Refusal> {
        let mut found = self.get(oid)?;
        for _ in 0..DEEPEST {
            if found.kind != Kind::Domain {
                return Ok(found);
            }
            found = self.get(found.base)?;
        }
        Err(Refusal::Deep(found.name.clone()))
    }

    /// As `json_categorize_type` decides.
    fn shape(&self, oid: u32, depth: usize) -> Result<Shape, Refusal> {
        let found = self.base(oid)?;
        if depth > DEEPEST {
            return Err(Refusal::Deep(found.name.clone()));
        }
        Ok(match found.oid {
            oid::BOOL => Shape::Bool,
            oid::INT2 | oid::INT4 | oid::INT8 | oid::FLOAT4 | oid::FLOAT8 | oid::NUMERIC => Shape::Number,
            oid::TIMESTAMP => Shape::Timestamp,
            oid::TIMESTAMPTZ => Shape::TimestampTz,
            oid::JSON | oid::JSONB => Shape::Json,
            // Arrays to the catalogue, but with a text form of their own.
            oid::INT2VECTOR => Shape::Vector(Box::new(Shape::Number)),
            oid::OIDVECTOR => Shape::Vector(Box::new(Shape::Text)),
            _ if found.element != 0 => {
                let element = self.get(found.element)?;
                let delimiter = match element.delimiter.as_bytes() {
                    [byte] if byte.is_ascii_graphic() && !b"{}\"\\".contains(byte) => *byte,
                    _ => return Err(Refusal::Delimiter { type_name: element.name.clone(), delimiter: element.delimiter.clone() }),
                };
                Shape::Array { element: Box::new(self.shape(found.element, depth + 1)?), delimiter }
            }
            _ => match (found.kind, &found.cast) {
                (Kind::Composite, _) => Shape::Composite(self.attributes(found, depth)?),
                (Kind::Pseudo, _) => return Err(Refusal::Pseudo(found.name.clone())),
                (_, Some(Cast { hstore: true, .. })) => Shape::Hstore,
                (_, Some(Cast { function, .. })) => {
                    return Err(Refusal::Cast { type_name: found.name.clone(), function: function.clone() });
                }
                (_, None) => Shape::Text,
            },
        })
    }

    fn attributes(&self, composite: &Type, depth: usize) -> Result<Vec<Attribute>, Refusal> {
        let attribute = |(name, oid): &(String, u32)| {
            let mut before = String::with_capacity(name.len() + 3);
            push_json_text(&mut before, name);
            before.push(':');
            Ok(Attribute { before, shape: self.shape(*oid, depth + 1)? })
        };
        composite.attributes.iter().map(attribute).collect()
    }

    /// Writes what decides how a type's values look. The nesting was checked before.
    fn define(&self, definition: &mut String, oid: u32) -> Result<(), Refusal> {
        let found = self.get(oid)?;
        definition.push_str(&found.name);
        if !found.labels.is_empty() {
            write!(definition, " {:?}", found.labels).expect("a String takes every write");
        }
        match found.kind {
            Kind::Domain => {
                definition.push_str(" over ");
                self.define(definition, found.base)?;
            }
            Kind::Composite => {
                definition.push('(');
                for (index, (name, oid)) in found.attributes.iter().enumerate() {
                    write!(definition, "{}{name:?} ", if index > 0 { ", " } else { "" }).expect("a String takes every write");
                    self.define(definition, *oid)?;
                }
                definition.push(')');
            }
            Kind::Range | Kind::Multirange => {
                definition.push_str(" of ");
                self.define(definition, found.subtype)?;
            }
            // The name of an array is that of its element, and the element of a built-in type is built in.
            _ if found.element >= FIRST_NOT_BUILT_IN => {
                definition.push_str(" of ");
                self.define(definition, found.element)?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// PostgreSQL gives higher ids to what users make.
const FIRST_NOT_BUILT_IN: u32 = 16_384;

fn key_type(base: u32, shape: &Shape) -> Option<ColumnType> {
    match (base, shape) {
        (oid::INT2 | oid::INT4 | oid::INT8, _) => Some(ColumnType::Integer),
        (_, Shape::Number) => Some(ColumnType::Numeric),
        (_, Shape::Text) if oid::NAMES.contains(&base) => None,
        (_, Shape::Text | Shape::Bool | Shape::Timestamp | Shape::TimestampTz) => Some(ColumnType::Text),
        (_, Shape::Json | Shape::Hstore | Shape::Vector(_) | Shape::Array { .. } | Shape::Composite(_)) => None,
    }
}
