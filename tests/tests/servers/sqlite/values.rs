//! Values: a row of whatever storage classes in columns of whatever affinities has the same bytes by trigger, by hook, by chunk and alone,
//! and they are what SQLite says.

use std::cell::RefCell;
use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rowcast::change::Image;
use rowcast::source::sqlite::{Capture, SqliteSettings};
use rowcast::source::{ChunkLimits, Portion, Source};
use rowcast_sea_orm::Operation;
use rusqlite::Connection;
use rusqlite::types::{Value, ValueRef};
use sea_orm::TransactionTrait;
use serde_json::value::RawValue;

use super::{Follower, application, newest, now, rows_now, settings};

mod cell {
    //! The table as SeaORM knows it.
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "cells")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
    }

    #[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    rowcast_sea_orm::hooks!(ActiveModel);
}

/// Columns of every affinity; SQLite takes any value in each of them.
const COLUMNS: [&str; 9] =
    ["i INTEGER", "t TEXT", "r REAL", "n NUMERIC", "b BLOB", "u", "d DATE", "v VARCHAR(5) COLLATE NOCASE", "\"q \"\"x\" DOUBLE"];
const NAMES: [&str; 9] = ["i", "t", "r", "n", "b", "u", "d", "v", "q \"x"];
/// In a strict table only these do.
const ANY: [&str; 9] = ["i ANY", "t ANY", "r ANY", "n ANY", "b ANY", "u ANY", "d ANY", "v ANY COLLATE RTRIM", "\"q \"\"x\" ANY"];

/// A value to be bound, and whether it is bytes that are to be taken for text.
type Cell = (Value, bool);

fn cell() -> impl Strategy<Value = Cell> {
    let integers = prop_oneof![any::<i64>(), (-3_i64..4), Just(i64::MAX), Just(i64::MIN), Just((1 << 53) + 1)];
    let reals = prop_oneof![
        any::<u64>().prop_map(f64::from_bits),
        any::<i32>().prop_map(f64::from),
        Just(f64::INFINITY),
        Just(f64::NEG_INFINITY),
        Just(-0.0),
        Just(9_007_199_254_740_993.0),
        Just(0.1 + 0.2)
    ];
    let numbers_as_text =
        prop_oneof![any::<i64>().prop_map(|n| n.to_string()), any::<f64>().prop_map(|n| n.to_string()), " 1 ", "0x10", "1e3", "-0"];
    let texts = prop_oneof![any::<String>(), "[a\\x00\"\\\\/\\u{7f}\\u{2028}\u{1f600}\n]{0,8}", numbers_as_text];
    prop_oneof![
        1 => Just((Value::Null, false)),
        3 => integers.prop_map(|n| (Value::Integer(n), false)),
        3 => reals.prop_map(|n| (Value::Real(n), false)),
        4 => texts.prop_map(|text| (Value::Text(text), false)),
        2 => any::<Vec<u8>>().prop_map(|bytes| (Value::Blob(bytes), false)),
        1 => proptest::collection::vec(any::<u8>(), 0..4).prop_map(|bytes| (Value::Blob(bytes), true)),
    ]
}

/// A database with the table, and who follows it.
struct Side {
    app: Connection,
    follower: RefCell<Follower>,
}

impl Side {
    async fn new(path: &std::path::Path, strict: bool, capture: Capture) -> Side {
        let app = application(path);
        let (columns, option) = if strict { (ANY, "STRICT") } else { (COLUMNS, "") };
        app.execute_batch(&format!(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; CREATE TABLE cells(id INTEGER PRIMARY KEY, {}) {option}",
            columns.join(", ")
        ))
        .unwrap();
        let settings = SqliteSettings { capture, ..settings(path, &[("cells", Some("c:{id}"))]) };
        Side { app, follower: RefCell::new(Follower::begin(&settings).await) }
    }

    fn insert(&self, id: i64, cells: &[Cell]) {
        let values: Vec<String> = (0..cells.len())
            .map(|index| format!("CASE WHEN ?{} THEN CAST(?{1} AS TEXT) ELSE ?{1} END", 2 * index + 2, 2 * index + 3))
            .collect();
        let sql = format!("INSERT INTO cells VALUES(?1, {})", values.join(", "));
        let mut bound = vec![Value::Integer(id)];
        bound.extend(cells.iter().flat_map(|(value, as_text)| [Value::Integer((*as_text).into()), value.clone()]));
        self.app.prepare_cached(&sql).unwrap().execute(rusqlite::params_from_iter(bound)).unwrap();
    }

    /// What comes in the stream, by primary key.
    #[expect(clippy::await_holding_refcell_ref, reason = "nobody else runs on this thread")]
    async fn streamed(&self) -> BTreeMap<String, Image> {
        let mut follower = self.follower.borrow_mut();
        let newest = newest(&self.app);
        let mut images = BTreeMap::new();
        while follower.position.0 < newest {
            if let Portion::Changes { changes, to, .. } = follower.source.next().await.unwrap() {
                images.extend(changes.into_iter().map(|change| (change.pk, change.image)));
                follower.position = to;
            }
        }
        images
    }
}

/// Whether the image says of every cell what SQLite says.
fn check(app: &Connection, id: i64, image: &Image) -> Result<(), TestCaseError> {
    let quoted: Vec<String> = NAMES.iter().map(|name| super::quoted(name)).collect();
    let judged: Vec<String> =
        quoted.iter().map(|name| format!("CASE WHEN typeof({name}) IN ('integer', 'text', 'null') THEN json_quote({name}) END")).collect();
    let sql = format!("SELECT {}, {} FROM cells WHERE id = ?1", quoted.join(", "), judged.join(", "));
    let mut statement = app.prepare_cached(&sql).unwrap();
    let mut rows = statement.query([id]).unwrap();
    let row = rows.next().unwrap().unwrap();
    let values: Vec<ValueRef<'_>> = (0..NAMES.len()).map(|index| row.get_ref(index).unwrap()).collect();
    let readable = values.iter().all(|value| !matches!(value, ValueRef::Text(bytes) if std::str::from_utf8(bytes).is_err()));
    let Image::Present { json, .. } = image else {
        prop_assert!(!readable && matches!(image, Image::Unreadable { key: Some(_), .. }), "{image:?}");
        return Ok(());
    };
    prop_assert!(readable);
    let object: BTreeMap<String, &RawValue> = serde_json::from_str(json).unwrap();
    prop_assert_eq!(object.len(), 1 + NAMES.len());
    for (index, (name, value)) in NAMES.iter().zip(&values).enumerate() {
        let text = object[*name].get();
        match value {
            // Not a number is NULL: SQLite made it so.
            ValueRef::Real(number) if number.is_infinite() => prop_assert_eq!(text, if *number > 0.0 { "9.0e+999" } else { "-9.0e+999" }),
            ValueRef::Real(number) => {
                prop_assert_eq!(text.parse::<f64>().unwrap().to_bits(), number.to_bits(), "{}: {}", name, text);
                prop_assert!(text.contains(['.', 'e']), "{} reads like a whole number", text);
                let again: f64 = app.query_row(&format!("SELECT {text}"), [], |row| row.get(0)).unwrap();
                // Its own reading of decimal digits is exact to fifteen of them; the smallest numbers have fewer.
                let exact_to = (number.abs() * 1e-15).max(100.0 * f64::from_bits(1));
                prop_assert!((again - number).abs() <= exact_to, "SQLite reads {} as {}", text, again);
            }
            ValueRef::Blob(bytes) => {
                let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                prop_assert_eq!(text, format!("\"{hex}\""));
            }
            _ => prop_assert_eq!(text, row.get::<_, String>(NAMES.len() + index).unwrap(), "{}", name),
        }
    }
    Ok(())
}

fn compare_everything(strict: bool) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (by_trigger, by_hook, orm) = runtime.block_on(async {
        let paths = ["triggers.db", "hooks.db"].map(|name| folder.path().join(name));
        let sides = (Side::new(&paths[0], strict, Capture::Triggers).await, Side::new(&paths[1], strict, Capture::Hooks).await);
        let orm = sea_orm::Database::connect(format!("sqlite://{}", paths[1].display())).await.unwrap();
        (sides.0, sides.1, orm)
    });
    let next = RefCell::new(1_i64);
    let row = proptest::collection::vec(cell(), NAMES.len());
    let mut runner = TestRunner::new(Config { cases: 60, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&proptest::collection::vec(row, 1..12), |rows| {
        let mut id = next.borrow_mut();
        let ids: Vec<i64> = rows
            .iter()
            .map(|cells| {
                by_trigger.insert(*id, cells);
                by_hook.insert(*id, cells);
                *id += 1;
                *id - 1
            })
            .collect();
        runtime.block_on(async {
            let txn = orm.begin().await.unwrap();
            rowcast_sea_orm::record::<cell::Entity, _>(&txn, Operation::Insert, ids.iter().copied()).await.unwrap();
            txn.commit().await.unwrap();
        });
        let streamed = runtime.block_on(by_trigger.streamed());
        prop_assert_eq!(streamed.len(), ids.len());
        prop_assert_eq!(&streamed, &runtime.block_on(by_hook.streamed()), "by trigger and by hook");
        let pks: Vec<String> = ids.iter().map(|id| format!("{{\"id\":{id}}}")).collect();
        let mut follower = by_trigger.follower.borrow_mut();
        let after = Some(rowcast::change::Bound(format!("{{\"id\":{}}}", ids[0] - 1).into()));
        let limits = ChunkLimits { rows: 1000, bytes: 1 << 30 };
        let chunk = now(runtime.block_on(follower.source.chunk(0, after.as_ref(), limits)).unwrap());
        let alone = rows_now(runtime.block_on(follower.source.rows(0, &pks, limits)).unwrap()).0;
        for read in [chunk, alone] {
            let read: BTreeMap<String, Image> = read.rows.into_iter().map(|row| (row.pk, row.image)).collect();
            prop_assert_eq!(&streamed, &read, "in the stream, and by chunk or alone");
        }
        for (id, pk) in ids.iter().zip(&pks) {
            check(&by_trigger.app, *id, &streamed[pk])?;
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_value_of_any_class_in_a_column_of_any_affinity_has_one_form_however_it_comes() {
    compare_everything(false);
}

#[test]
fn the_columns_of_a_strict_table_have_it_too() {
    compare_everything(true);
}
