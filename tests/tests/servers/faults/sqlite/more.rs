//! Five more tables, each of a kind that makes life hard: cascades, collations, computed columns, keys of bytes, names in quotes, partial
//! and expression indexes, a trigger of the application's own.

use rand::RngExt;
use rand::rngs::StdRng;
use rusqlite::Connection;

use super::super::contents::{Contents, Value};
use super::super::database::{KEYS, numbered};

/// How the tables are created. In every one `v` only grows, but for rows that the database itself changes.
pub const SCHEMA: &str = "
    CREATE TABLE tree (id INTEGER PRIMARY KEY, parent INTEGER REFERENCES tree ON DELETE CASCADE ON UPDATE CASCADE, v INTEGER NOT NULL);
    CREATE TABLE items (sku TEXT NOT NULL PRIMARY KEY COLLATE NOCASE, amount ANY, v INTEGER NOT NULL, shown TEXT AS (upper(sku)) STORED) STRICT;
    CREATE TABLE tags (a INTEGER NOT NULL, b BLOB NOT NULL, c TEXT UNIQUE, v INTEGER NOT NULL, PRIMARY KEY (a, b DESC)) WITHOUT ROWID;
    CREATE TABLE \"an \"\"order\"\"\" (\"select\" INTEGER PRIMARY KEY, \"a b\" TEXT UNIQUE ON CONFLICT REPLACE, v INTEGER NOT NULL);
    CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT, active INTEGER NOT NULL DEFAULT 1, v INTEGER NOT NULL);
    CREATE UNIQUE INDEX active_names ON names (lower(name)) WHERE active = 1;
    CREATE TRIGGER theirs AFTER INSERT ON names BEGIN UPDATE names SET active = 0 WHERE id = NEW.id - 1; END;
";

/// A migration that rebuilds a table, as tools do it.
pub const REBUILD: &str = "
    BEGIN IMMEDIATE;
    CREATE TABLE fresh (id INTEGER PRIMARY KEY, name TEXT, active INTEGER NOT NULL DEFAULT 1, v INTEGER NOT NULL);
    INSERT INTO fresh SELECT id, name, active, v FROM names;
    DROP TABLE names;
    ALTER TABLE fresh RENAME TO names;
    CREATE UNIQUE INDEX active_names ON names (lower(name)) WHERE active = 1;
    CREATE TRIGGER theirs AFTER INSERT ON names BEGIN UPDATE names SET active = 0 WHERE id = NEW.id - 1; END;
    COMMIT;
";

/// The tables' part of the configuration.
pub const TABLES: &str = r#"
[[table]]
name = "tree"

[[table]]
name = "items"
key = "item:{sku}"

[[table]]
name = "tags"
key = "tag:{a}:{b}"
ttl = "1h"

[[table]]
name = "an \"order\""
key = "order:{select}"

[[table]]
name = "names"
where = "active = 1"
"#;

/// What a configuration is made into for a while, option by option: one of the tables goes, one is evicted, one is filled by the application,
/// one gets other keys and another shape, one loses its time to live, one gets another filter and another order of columns.
pub const OTHER_OPTIONS: [(&str, &str); 6] = [
    ("\n[[table]]\nname = \"tree\"\n", ""),
    ("key = \"item:{sku}\"\n", "key = \"item:{sku}:row\"\non_change = \"evict\"\n"),
    ("key = \"setting:{id}\"\n", "key = \"setting:{id}\"\non_change = \"refresh\"\n"),
    ("key = \"order:{select}\"\n", "key = \"o:{select}\"\nvalue = \"hash\"\n"),
    ("ttl = \"1h\"\n", ""),
    ("where = \"active = 1\"\n", "where = \"name LIKE '%1%'\"\ncolumns = [\"name\", \"id\", \"v\"]\n"),
];

/// Each table, its key's beginning, the key's columns and its filter.
const KEYS_OF: [(&str, &str, &[&str], &str); 5] = [
    ("tree", "tree", &["id"], "true"),
    ("items", "item", &["sku"], "true"),
    ("tags", "tag", &["a", "b"], "true"),
    ("an \"order\"", "order", &["select"], "true"),
    ("names", "names", &["id"], "active = 1"),
];

/// Every key that the writer may write.
pub fn keys() -> Vec<String> {
    let mut keys = ["tree:", "item:c", "item:C", "order:", "names:"].map(numbered).concat();
    keys.extend((0..3).flat_map(|a| (0..KEYS).map(move |n| format!("tag:{a}:{n:02x}"))));
    keys
}

/// What the cache should hold for the rows that there are, whatever columns the tables have by now.
pub fn expected(database: &Connection) -> Contents {
    let mut contents = Contents::new();
    for (table, prefix, key, filter) in KEYS_OF {
        let mut statement = database.prepare("SELECT name FROM pragma_table_xinfo(?1)").expect("a query");
        let columns: Vec<String> =
            statement.query_map([table], |row| row.get(0)).expect("columns").map(|name| name.expect("a name")).collect();
        let plain = |name: &str| format!("CASE typeof(\"{name}\") WHEN 'blob' THEN lower(hex(\"{name}\")) ELSE \"{name}\" END");
        let fields: Vec<String> = columns.iter().map(|name| format!("'{name}', {}", plain(name))).collect();
        let key: Vec<String> = key.iter().map(|name| format!("':' || {}", plain(name))).collect();
        let table = table.replace('"', "\"\"");
        let sql = format!("SELECT '{prefix}' || {}, json_object({}) FROM \"{table}\" WHERE {filter}", key.join(" || "), fields.join(", "));
        let mut statement = database.prepare(&sql).expect("a query");
        let rows = statement.query_map([], |row| Ok((row.get(0)?, Value::Text(row.get(1)?)))).expect("rows");
        contents.extend(rows.map(|row| row.expect("a row")));
    }
    contents
}

/// One statement on one of the tables.
pub fn statement(random: &mut StdRng, [key, other]: [u64; 2], word: &str, v: u64) -> String {
    let (a, letter) = (random.random_range(0..3), ["c", "C"][random.random_range(0..2)]);
    match random.random_range(0..20) {
        0 | 1 => format!("INSERT OR REPLACE INTO tree VALUES ({key}, (SELECT id FROM tree WHERE id = {other} AND id <> {key}), {v})"),
        2 => format!("UPDATE OR REPLACE tree SET id = {other}, v = {v} WHERE id = {key}"),
        3 => format!("UPDATE tree SET parent = NULL, v = {v} WHERE id = {key}"),
        4 => format!("DELETE FROM tree WHERE id = {key}"),
        5 => format!("INSERT OR REPLACE INTO items (sku, amount, v) VALUES ('{letter}{key}', {word}, {v})"),
        6 => format!("UPDATE OR REPLACE items SET sku = '{letter}{other}', v = {v} WHERE sku = 'c{key}'"),
        7 => format!("UPDATE items SET amount = {other}.5, v = {v} WHERE sku = 'c{key}'"),
        8 => format!("DELETE FROM items WHERE sku = '{letter}{key}'"),
        9 => format!("INSERT OR REPLACE INTO tags (a, b, c, v) VALUES ({a}, x'{key:02x}', 'c{other}', {v})"),
        10 => format!("UPDATE OR REPLACE tags SET b = x'{other:02x}', v = {v} WHERE a = {a} AND b = x'{key:02x}'"),
        11 => format!("UPDATE OR REPLACE tags SET c = 'c{other}', v = {v} WHERE a = {a} AND b = x'{key:02x}'"),
        12 => format!("DELETE FROM tags WHERE c = 'c{key}'"),
        13 => format!(
            "INSERT INTO \"an \"\"order\"\"\" (\"select\", \"a b\", v) VALUES ({key}, 'b{other}', {v}) ON CONFLICT (\"select\") DO UPDATE SET v = {v}"
        ),
        14 => format!("UPDATE \"an \"\"order\"\"\" SET \"a b\" = 'b{other}', v = {v} WHERE \"select\" = {key}"),
        15 => format!("DELETE FROM \"an \"\"order\"\"\" WHERE \"a b\" = 'b{key}'"),
        16 => format!("INSERT OR REPLACE INTO names (id, name, v) VALUES ({key}, 'Name {other}', {v})"),
        17 => format!("UPDATE OR REPLACE names SET active = 1, name = 'NAME {other}', v = {v} WHERE id = {key}"),
        18 => format!("UPDATE OR REPLACE names SET id = {other}, v = {v} WHERE id = {key}"),
        _ => format!("DELETE FROM names WHERE id BETWEEN {key} AND {key} + 2"),
    }
}
