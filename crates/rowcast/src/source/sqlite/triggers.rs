//! The triggers of a table, generated from what the table is. Pure, so that they can be compared with what is installed.
//!
//! A changelog row *names* a key that may have changed; what stands there is looked up when the change is shipped. So a row
//! too many does no harm, and a row too few loses a change. Three triggers name what a statement touches; where there is more than
//! a primary key to be unique, two more name the rows that a REPLACE may displace without a word; where a statement may fail half
//! done, two more name its rows before it.

use super::schema::{Part, PartOf, Table, Unique};
use super::sql::{self, quoted};

/// A trigger's name and the statement that creates it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trigger {
    pub(super) name: String,
    pub(super) sql: String,
}

/// Statement time in milliseconds; every SQLite that an application may bring can compute it.
const AT: &str = "CAST((julianday('now')-2440587.5)*86400000 AS INTEGER)";

/// Which column of the changelog holds the value at `index`.
pub(super) fn value_column(index: usize) -> String {
    format!("v{}", index + 1)
}

/// How many of these columns a table's changelog rows may fill: the primary key, and either the old values of the template's
/// other columns or, where there are none, the key that the row has after an update.
pub(super) fn logged_width(key: usize, beside_key: usize) -> usize {
    key + if beside_key == 0 { key } else { beside_key }
}

/// What a table's changelog rows hold: the primary key, then those columns of the template that are not in it.
pub(super) struct Logged<'t> {
    pub(super) table: &'t Table,
    /// Its number in `rowcast_table`.
    pub(super) number: i64,
    /// By their places in the table.
    pub(super) beside_key: &'t [usize],
}

/// The triggers of a table, in the order in which they are created.
pub(super) fn generate(logged: &Logged<'_>) -> Vec<Trigger> {
    let insert = logged.values('I', |column| format!("NEW.{column}"), |_| "NULL".to_owned());
    let delete = logged.values('D', |column| format!("OLD.{column}"), |column| format!("OLD.{column}"));
    let mut triggers = vec![
        logged.trigger("insert", "AFTER INSERT", None, &[insert]),
        logged.trigger("update", "AFTER UPDATE", None, &[logged.updated()]),
        logged.trigger("delete", "AFTER DELETE", None, &[delete]),
    ];
    triggers.extend(logged.displaced_by_insert());
    triggers.extend(logged.displaced_by_update());
    triggers.extend(logged.failed());
    triggers
}

impl Logged<'_> {
    fn column(&self, place: usize) -> String {
        quoted(&self.table.columns[place].name)
    }

    fn trigger(&self, what: &str, when: &str, guard: Option<&str>, statements: &[String]) -> Trigger {
        let name = format!("rowcast_{}_{what}", self.number);
        let guard = guard.map(|guard| format!(" WHEN {guard}")).unwrap_or_default();
        let body: String = statements.iter().map(|statement| format!(" {statement};")).collect();
        let sql = format!("CREATE TRIGGER {name} {when} ON {} FOR EACH ROW{guard} BEGIN{body} END", quoted(&self.table.name));
        Trigger { name, sql }
    }

    fn target(&self) -> String {
        target(self.table.key.len() + self.beside_key.len())
    }

    fn row(&self, op: char, key: impl Fn(usize) -> String, beside: impl Fn(usize) -> String) -> String {
        let values: Vec<String> = self.table.key_columns().map(key).chain(self.beside_key.iter().map(|place| beside(*place))).collect();
        format!("{}, '{op}', {AT}, {}", self.number, values.join(", "))
    }

    fn values(&self, op: char, key: impl Fn(&str) -> String, beside: impl Fn(&str) -> String) -> String {
        let row = self.row(op, |place| key(&self.column(place)), |place| beside(&self.column(place)));
        format!("{} VALUES({row})", self.target())
    }

    /// Names every row for which `condition` holds.
    fn rows_where(&self, condition: &str) -> String {
        let row = self.row('D', |place| self.column(place), |place| self.column(place));
        format!("{} SELECT {row} FROM {} WHERE {condition}", self.target(), quoted(&self.table.name))
    }

    /// Whether a row that is displaced by its primary key alone would go unnamed: its key may differ in its bytes from the
    /// new row's, or its old values are wanted.
    fn key_hides_old_row(&self) -> bool {
        !self.beside_key.is_empty() || !self.table.key_is_rowid && !self.table.key.iter().all(|part| self.table.equal_is_same(part))
    }

    /// Whether nothing but its primary key makes a row unique, and what an update displaces had the row's new key.
    ///
    /// By a cascade a displaced row may take the very row along that is being updated, and then no AFTER UPDATE comes.
    fn is_named_afterwards(&self) -> bool {
        let only_by_key = !self.key_hides_old_row() && self.table.hidden_rowid.is_none() && self.table.unique.is_empty();
        only_by_key && !self.table.removal_spreads && !self.table.action_may_fail
    }

    /// The old key and, where no trigger before the update names it, the new one in the same row: a second trigger with a
    /// condition would cost every update a twentieth.
    fn updated(&self) -> String {
        if !self.is_named_afterwards() {
            return self.values('U', |column| format!("OLD.{column}"), |column| format!("OLD.{column}"));
        }
        assert!(self.beside_key.is_empty(), "a table whose old values are wanted is looked at before the update");
        let keys =
            ["OLD", "NEW"].map(|row| self.table.key_columns().map(|place| format!("{row}.{}", self.column(place))).collect::<Vec<_>>());
        let values = keys.concat();
        format!("{} VALUES({}, 'U', {AT}, {})", target(values.len()), self.number, values.join(", "))
    }

    fn displaced_by_insert(&self) -> Option<Trigger> {
        let mut statements = Vec::new();
        if self.key_hides_old_row() || self.table.action_may_fail {
            statements.push(self.rows_where(&self.equals_new(&self.table.key, None)));
        }
        if let Some(rowid) = self.table.hidden_rowid {
            statements.push(self.rows_where(&format!("{rowid} = NEW.{rowid}")));
        }
        statements
            .extend(self.table.unique.iter().map(|unique| self.rows_where(&self.equals_new(&unique.parts, unique.partial.as_deref()))));
        (!statements.is_empty()).then(|| self.trigger("insert_displaces", "BEFORE INSERT", None, &statements))
    }

    /// Also names the new key of a row whose primary key changes.
    fn displaced_by_update(&self) -> Option<Trigger> {
        if self.is_named_afterwards() {
            return None;
        }
        let not_itself =
            format!("NOT ({})", self.each_key_part(|column, collation| format!("{column} COLLATE {collation} IS OLD.{column}"), " AND "));
        let key_changes = self.each_key_part(|column, _| format!("OLD.{column} COLLATE BINARY IS NOT NEW.{column}"), " OR ");
        let new_key = self.row('U', |place| self.new_value(place), |_| "NULL".to_owned());
        let mut statements = vec![format!("{} SELECT {new_key} WHERE {key_changes}", self.target())];
        let mut guards = vec![Some(key_changes.clone())];
        if self.key_hides_old_row() {
            let equal = self.equals_new(&self.table.key, None);
            statements.push(self.rows_where(&format!("({key_changes}) AND {equal} AND {not_itself}")));
        }
        if let Some(rowid) = self.table.hidden_rowid {
            let changes = format!("OLD.{rowid} IS NOT NEW.{rowid}");
            statements.push(self.rows_where(&format!("{changes} AND {rowid} = NEW.{rowid} AND {not_itself}")));
            guards.push(Some(changes));
        }
        for unique in &self.table.unique {
            let equal = self.equals_new(&unique.parts, unique.partial.as_deref());
            let guard = self.changes(unique);
            let first = guard.as_ref().map(|guard| format!("({guard}) AND ")).unwrap_or_default();
            statements.push(self.rows_where(&format!("{first}{equal} AND {not_itself}")));
            guards.push(guard);
        }
        let guard: Option<Vec<String>> = guards.into_iter().collect();
        let guard = guard.map(|guards| guards.join(" OR "));
        Some(self.trigger("update_displaces", "BEFORE UPDATE", guard.as_deref(), &statements))
    }

    /// Names a row before it is updated or deleted, where a foreign key's action may fail in between.
    fn failed(&self) -> Vec<Trigger> {
        if !self.table.action_may_fail {
            return Vec::new();
        }
        let old = |op| self.values(op, |column| format!("OLD.{column}"), |column| format!("OLD.{column}"));
        vec![
            self.trigger("update_fails", "BEFORE UPDATE", None, &[old('U')]),
            self.trigger("delete_fails", "BEFORE DELETE", None, &[old('D')]),
        ]
    }

    fn each_key_part(&self, write: impl Fn(&str, &str) -> String, between: &str) -> String {
        let parts = self.table.key.iter().filter_map(|part| match part.what {
            PartOf::Column(place) => Some(write(&self.column(place), &part.collation)),
            PartOf::Expression(_) => None,
        });
        parts.collect::<Vec<_>>().join(between)
    }

    /// When an update can give the row another place in the index; `None` where only the expressions know.
    fn changes(&self, unique: &Unique) -> Option<String> {
        if unique.partial.is_some() {
            return None;
        }
        let parts = unique.parts.iter().map(|part| match part.what {
            PartOf::Column(place) => Some(format!("OLD.{0} COLLATE BINARY IS NOT NEW.{0}", self.column(place))),
            PartOf::Expression(_) => None,
        });
        Some(parts.collect::<Option<Vec<_>>>()?.join(" OR "))
    }

    /// What the column will hold: REPLACE makes the default of a NULL where NULL is not allowed, after the triggers have run.
    fn new_value(&self, place: usize) -> String {
        let column = &self.table.columns[place];
        match &column.default {
            Some(default) if column.not_null => format!("coalesce(NEW.{}, {})", quoted(&column.name), sql::default_value(default)),
            _ => format!("NEW.{}", quoted(&column.name)),
        }
    }

    /// The condition that a row of the table equals the new one in an index.
    fn equals_new(&self, parts: &[Part], partial: Option<&str>) -> String {
        let mut conditions: Vec<String> = parts
            .iter()
            .map(|part| match &part.what {
                PartOf::Column(place) => format!("{} COLLATE {} = {}", self.column(*place), part.collation, self.new_value(*place)),
                PartOf::Expression(text) => format!("({text}) COLLATE {} = {}", part.collation, self.of_new(text)),
            })
            .collect();
        if let Some(partial) = partial {
            conditions.push(format!("({partial})"));
            conditions.push(self.of_new(partial));
        }
        conditions.join(" AND ")
    }

    /// An expression's value for the new row. The empty first half gives the columns the table's affinities and collations,
    /// which the values of NEW alone do not have.
    fn of_new(&self, expression: &str) -> String {
        let places: Vec<usize> = (0..self.table.columns.len()).filter(|place| !self.table.columns[*place].generated).collect();
        let columns: Vec<String> = places.iter().map(|place| self.column(*place)).collect();
        let values: Vec<String> = places.iter().map(|place| self.new_value(*place)).collect();
        let name = quoted(&self.table.name);
        format!(
            "(SELECT ({expression}) FROM (SELECT {} FROM {name} WHERE 0 UNION ALL SELECT {}) AS {name})",
            columns.join(", "),
            values.join(", ")
        )
    }
}

fn target(width: usize) -> String {
    let values: Vec<String> = (0..width).map(value_column).collect();
    format!("INSERT INTO rowcast_changelog(tbl, op, at, {})", values.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::sqlite::schema;
    use rusqlite::Connection;

    fn names(sql: &str, beside: &[usize]) -> Vec<Trigger> {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(sql).unwrap();
        let table = schema::read(&connection, "t").unwrap().unwrap();
        assert_eq!(table.trouble, None);
        generate(&Logged { table: &table, number: 1, beside_key: beside })
    }

    #[test]
    fn a_table_with_nothing_but_its_integer_key_pays_for_nothing_else() {
        let triggers = names("CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT NOT NULL)", &[]);
        let texts: Vec<&str> = triggers.iter().map(|trigger| trigger.sql.as_str()).collect();
        let log = "INSERT INTO rowcast_changelog(tbl, op, at, v1";
        assert_eq!(
            texts,
            [
                format!(
                    "CREATE TRIGGER rowcast_1_insert AFTER INSERT ON \"t\" FOR EACH ROW BEGIN {log}) VALUES(1, 'I', {AT}, NEW.\"id\"); END"
                ),
                format!(
                    "CREATE TRIGGER rowcast_1_update AFTER UPDATE ON \"t\" FOR EACH ROW BEGIN {log}, v2) VALUES(1, 'U', {AT}, OLD.\"id\", NEW.\"id\"); END"
                ),
                format!(
                    "CREATE TRIGGER rowcast_1_delete AFTER DELETE ON \"t\" FOR EACH ROW BEGIN {log}) VALUES(1, 'D', {AT}, OLD.\"id\"); END"
                ),
            ]
        );
    }

    #[test]
    fn a_row_that_may_be_taken_along_is_named_before_its_update() {
        let before = |sql: &str| names(sql, &[]).iter().any(|trigger| trigger.name == "rowcast_1_update_displaces");
        let child = "CREATE TABLE c(id INTEGER PRIMARY KEY, t INTEGER REFERENCES T ON DELETE CASCADE)";
        assert!(!before("CREATE TABLE t(id INTEGER PRIMARY KEY, parent INTEGER REFERENCES t)"));
        assert!(before("CREATE TABLE t(id INTEGER PRIMARY KEY, parent INTEGER REFERENCES t ON DELETE CASCADE)"));
        assert!(!before(&format!("CREATE TABLE t(id INTEGER PRIMARY KEY, a); {child}")));
        assert!(before(&format!("CREATE TABLE t(id INTEGER PRIMARY KEY, a REFERENCES other ON DELETE CASCADE); {child}")));
        assert!(before(&format!("CREATE TABLE t(ID INTEGER PRIMARY KEY REFERENCES other ON UPDATE CASCADE, a); {child}")));
        assert!(!before(&format!("CREATE TABLE t(id INTEGER PRIMARY KEY, a REFERENCES other ON UPDATE CASCADE); {child}")));
        assert!(before(&format!(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, a); {child}; CREATE TRIGGER theirs AFTER DELETE ON c BEGIN DELETE FROM t; END"
        )));
    }

    #[test]
    fn rows_are_named_beforehand_where_a_foreign_keys_action_may_fail() {
        let before = |sql: &str| names(sql, &[]).iter().any(|trigger| trigger.name == "rowcast_1_delete_fails");
        let tables = "CREATE TABLE t(id INTEGER PRIMARY KEY, a); CREATE TABLE c(id INTEGER PRIMARY KEY, t REFERENCES T ON UPDATE SET NULL)";
        let theirs = |what: &str| format!("CREATE TRIGGER theirs BEFORE UPDATE ON c BEGIN SELECT RAISE({what}, 'no'); END");
        assert!(!before(tables));
        assert!(!before(&format!("{tables}; {}", theirs("ABORT"))));
        assert!(before(&format!("{tables}; {}", theirs("Fail"))));
        let audit = "CREATE TABLE audit(who NOT NULL ON CONFLICT FAIL)";
        assert!(!before(&format!("{tables}; {audit}")), "no trigger of the application writes there");
        assert!(before(&format!("{tables}; {audit}; {}", theirs("ABORT"))), "a trigger may meet that constraint");
        assert!(!before(&format!("{}; {}", tables.replace(" ON UPDATE SET NULL", ""), theirs("FAIL"))));
    }

    #[test]
    fn every_unique_index_and_every_wish_for_old_values_is_watched() {
        let watched = |sql, beside: &[usize]| names(sql, beside).iter().any(|trigger| trigger.name == "rowcast_1_insert_displaces");
        assert!(!watched("CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT NOT NULL)", &[]));
        assert!(!watched("CREATE TABLE t(k TEXT PRIMARY KEY, a TEXT) WITHOUT ROWID", &[]));
        assert!(watched("CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT NOT NULL)", &[1]));
        assert!(watched("CREATE TABLE t(id INTEGER PRIMARY KEY, a TEXT UNIQUE)", &[]));
        assert!(watched("CREATE TABLE t(k TEXT NOT NULL PRIMARY KEY, a TEXT)", &[]));
        assert!(watched("CREATE TABLE t(k TEXT PRIMARY KEY COLLATE NOCASE, a TEXT) WITHOUT ROWID", &[]));
        assert!(watched("CREATE TABLE t(k BLOB PRIMARY KEY, a TEXT) WITHOUT ROWID", &[]));
    }
}
