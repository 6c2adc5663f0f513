//! The tables as the catalogue has them: columns, keys, replica identity, partitions, and whether they are published.

use std::time::Duration;

use super::super::Error;
use super::types::{self, Catalogue};
use super::values::Plan;
use super::wire::{Answer, Connection, Fault, literal};
use crate::finding::Setting;
use crate::mapping::{ColumnSchema, ColumnType, TableSchema};

/// The server gives higher oids to what users make.
const FIRST_OF_USERS: u32 = 16_384;

/// How long a look at the catalogue may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A table that cannot be followed as it is configured: which setting does not fit, and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Misfit {
    pub setting: Setting,
    pub text: String,
}

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its number in the table; one that was dropped and made again has another.
    pub number: i16,
    /// Its name.
    pub name: String,
    /// The type's oid.
    pub type_oid: u32,
    /// How its values become JSON, or why they cannot.
    pub plan: Result<Plan, String>,
    /// The type as SQL writes it.
    pub declared: String,
    /// Whether it never holds a null.
    pub not_null: bool,
    /// Its collation as SQL writes it, where its type has any.
    pub collation: Option<String>,
    /// The type without length or precision where `unnest` takes a list of its values, each read as the type reads it: not of arrays and
    /// composites, which it would take apart.
    pub listed: Option<String>,
    /// How the server computes it, if it does. Such a column is not in the log.
    pub generated: Option<Generated>,
}

/// How the server computes a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The expression.
    pub expression: String,
    /// The columns that are in it.
    pub inputs: Vec<String>,
    /// A partition that computes it otherwise.
    pub differs_in: Option<String>,
}

/// A unique index over plain columns, without a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UniqueKey {
    /// Its columns, in order.
    pub columns: Vec<String>,
    /// Whether it is the primary key's.
    pub primary: bool,
    /// Whether it holds after each row, not only at the end of a transaction.
    pub immediate: bool,
}

/// What the log tells of a row that was changed or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// These columns.
    Columns(Vec<String>),
    /// Every column.
    Full,
    /// Nothing: as soon as the table is published, UPDATE and DELETE fail.
    Nothing,
}

impl Identity {
    pub(super) fn has(&self, column: &str) -> bool {
        match self {
            Identity::Columns(columns) => columns.iter().any(|name| name == column),
            Identity::Full => true,
            Identity::Nothing => false,
        }
    }
}

/// What holds the rows: the table itself, or a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// Its oid.
    pub oid: u32,
    /// Its name with the schema.
    pub name: String,
    /// `r` for an ordinary table.
    pub kind: char,
    /// Its replica identity.
    pub identity: Identity,
    /// The file that holds the rows; a statement that rewrites the table makes another one, and says nothing in the log.
    pub file: u32,
    /// The transactions that attached it and the partitions above it. What is written while one is detached is not in the log.
    pub attached: String,
}

/// A table's membership in a publication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Membership {
    /// Its oid; a membership that was ended and begun again has another one.
    pub oid: u32,
    /// The transaction that wrote the publication as it is; one whose options were changed, and be it back again, has another one.
    pub version: u32,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// As it is configured.
    pub name: String,
    /// Its oid.
    pub oid: u32,
    /// Its schema.
    pub schema: String,
    /// Its name in the schema.
    pub relation: String,
    /// `r` an ordinary table, `p` a partitioned one, `v` a view and so on.
    pub kind: char,
    /// `p` permanent, `u` unlogged, `t` temporary.
    pub persistence: char,
    /// Whether it is a partition itself.
    pub is_partition: bool,
    /// Its columns, in order.
    pub columns: Vec<Column>,
    /// Its unique keys.
    pub unique: Vec<UniqueKey>,
    /// What holds its rows.
    pub leaves: Vec<Leaf>,
    /// Its membership in the publication.
    pub membership: Option<Membership>,
    /// Whether the publication leaves out columns or rows.
    pub filtered: bool,
}

/// The schema and the name in it that a configured name means. Without a schema it is `public`.
pub(super) fn split_name(name: &str) -> (&str, &str) {
    name.split_once('.').unwrap_or(("public", name))
}

/// Reads these tables, and how the types of their columns become JSON; a table that is not there is `None`. All of it is as of one moment.
pub(super) async fn read(
    connection: &mut Connection,
    publication: &str,
    names: &[String],
) -> Result<(Vec<Option<Table>>, Catalogue), Fault> {
    let array = |texts: Vec<&str>| format!("ARRAY[{}]::text[]", texts.into_iter().map(literal).collect::<Vec<_>>().join(","));
    let (schemas, relations): (Vec<&str>, Vec<&str>) = names.iter().map(|name| split_name(name)).unzip();
    let wanted = format!(
        "wanted AS MATERIALIZED (SELECT w.place, c.* FROM unnest({}, {}) WITH ORDINALITY AS w(schema, relation, place) \
         JOIN pg_namespace n ON n.nspname = w.schema JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = w.relation \
         AND c.relkind IN ('r', 'p', 'v', 'm', 'f'))",
        array(schemas),
        array(relations)
    );
    let publication = literal(publication);
    let tables = format!(
        "WITH {wanted} SELECT w.place, w.oid, w.relkind, w.relpersistence, w.relispartition, \
         coalesce(r.oid, CASE WHEN p.puballtables THEN p.oid END), \
         coalesce(to_jsonb(r)->>'prqual' IS NOT NULL OR to_jsonb(r)->>'prattrs' IS NOT NULL, false), p.xmin \
         FROM wanted w LEFT JOIN pg_publication p ON p.pubname = {publication} \
         LEFT JOIN pg_publication_rel r ON r.prpubid = p.oid AND r.prrelid = w.oid ORDER BY w.place"
    );
    // With -1 a type without a length has a name that gives it none: character alone is one character long.
    let columns = format!(
        "WITH {wanted} SELECT w.place, a.attnum, a.attname, a.atttypid, format_type(a.atttypid, a.atttypmod), a.attnotnull, \
         (SELECT quote_ident(n.nspname) || '.' || quote_ident(c.collname) FROM pg_collation c JOIN pg_namespace n ON n.oid = c.collnamespace \
         WHERE c.oid = a.attcollation), \
         CASE WHEN t.typarray <> 0 AND t.typdelim = ',' AND t.typcategory <> 'C' AND t.typsubscript <> 'array_subscript_handler'::regproc \
         THEN format_type(a.atttypid, -1) END, \
         pg_get_expr(d.adbin, d.adrelid), {}, \
         (SELECT e.adrelid::regclass FROM pg_partition_tree(w.oid) l JOIN pg_attribute b ON b.attrelid = l.relid AND b.attname = a.attname \
         JOIN pg_attrdef e ON e.adrelid = l.relid AND e.adnum = b.attnum WHERE w.relkind = 'p' AND d.oid IS NOT NULL \
         AND pg_get_expr(e.adbin, e.adrelid) <> pg_get_expr(d.adbin, d.adrelid) LIMIT 1) \
         FROM wanted w JOIN pg_attribute a ON a.attrelid = w.oid JOIN pg_type t ON t.oid = a.atttypid \
         LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum AND a.attgenerated <> '' \
         WHERE a.attnum > 0 AND NOT a.attisdropped ORDER BY w.place, a.attnum",
        inputs_of("a", "d")
    );
    let unique = format!(
        "WITH {wanted} SELECT w.place, i.indisprimary, i.indimmediate, to_json(array(SELECT a.attname::text \
         FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place) JOIN pg_attribute a ON a.attrelid = w.oid AND a.attnum = k.attnum \
         WHERE k.place <= i.indnkeyatts ORDER BY k.place)) FROM wanted w JOIN pg_index i ON i.indrelid = w.oid \
         WHERE i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL ORDER BY w.place, i.indisprimary DESC, i.indexrelid"
    );
    let leaves = format!(
        "WITH {wanted}, leaf AS (SELECT w.place, w.oid FROM wanted w WHERE w.relkind <> 'p' \
         UNION ALL SELECT w.place, t.relid FROM wanted w CROSS JOIN LATERAL pg_partition_tree(w.oid) t WHERE w.relkind = 'p' AND t.isleaf) \
         SELECT l.place, c.oid, n.nspname, c.relname, c.relkind, c.relreplident, coalesce(pg_relation_filenode(c.oid), 0), \
         (SELECT to_json(array(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place) \
         JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum WHERE k.place <= i.indnkeyatts)) \
         FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND CASE c.relreplident WHEN 'd' THEN i.indisprimary ELSE i.indisreplident END LIMIT 1), \
         (SELECT coalesce(string_agg(h.xmin::text, '+' ORDER BY h.inhrelid), '') FROM pg_partition_ancestors(c.oid) a \
         JOIN pg_inherits h ON h.inhrelid = a.relid) \
         FROM leaf l JOIN pg_class c ON c.oid = l.oid JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY l.place, c.oid"
    );
    let sql = |query: &str| format!("{query};");
    // One implicit transaction would read each statement on a snapshot of its own.
    connection.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", PATIENCE).await?;
    let read = async {
        let mut found: Vec<Option<Table>> = names.iter().map(|_| None).collect();
        for cells in connection.query(&sql(&tables), PATIENCE).await? {
            let place = place(&cells)?;
            let (schema, relation) = split_name(&names[place]);
            found[place] = Some(Table {
                name: names[place].clone(),
                oid: cells.number(1)?,
                schema: schema.to_owned(),
                relation: relation.to_owned(),
                kind: letter(&cells, 2)?,
                persistence: letter(&cells, 3)?,
                is_partition: cells.is_true(4),
                columns: Vec::new(),
                unique: Vec::new(),
                leaves: Vec::new(),
                membership: cells.maybe(5)?.map(|_| Ok(Membership { oid: cells.number(5)?, version: cells.number(7)? })).transpose()?,
                filtered: cells.is_true(6),
            });
        }
        for cells in connection.query(&sql(&columns), PATIENCE).await? {
            let Some(table) = &mut found[place(&cells)?] else { continue };
            let generated = |expression: &str| {
                Ok(Generated {
                    expression: expression.to_owned(),
                    inputs: names_of(cells.text(9)?)?,
                    differs_in: cells.maybe(10)?.map(str::to_owned),
                })
            };
            table.columns.push(Column {
                number: cells.number(1)?,
                name: cells.text(2)?.to_owned(),
                type_oid: cells.number(3)?,
                plan: Err(String::new()),
                declared: cells.text(4)?.to_owned(),
                not_null: cells.is_true(5),
                collation: cells.maybe(6)?.map(str::to_owned),
                listed: cells.maybe(7)?.map(str::to_owned),
                generated: cells.maybe(8)?.map(generated).transpose()?,
            });
        }
        for cells in connection.query(&sql(&unique), PATIENCE).await? {
            let Some(table) = &mut found[place(&cells)?] else { continue };
            table.unique.push(UniqueKey { primary: cells.is_true(1), immediate: cells.is_true(2), columns: names_of(cells.text(3)?)? });
        }
        for cells in connection.query(&sql(&leaves), PATIENCE).await? {
            let Some(table) = &mut found[place(&cells)?] else { continue };
            let identity = match (letter(&cells, 5)?, cells.maybe(7)?) {
                ('f', _) => Identity::Full,
                ('d' | 'i', Some(columns)) => Identity::Columns(names_of(columns)?),
                _ => Identity::Nothing,
            };
            table.leaves.push(Leaf {
                oid: cells.number(1)?,
                name: format!("{}.{}", cells.text(2)?, cells.text(3)?),
                kind: letter(&cells, 4)?,
                identity,
                file: cells.number(6)?,
                attached: cells.text(8)?.to_owned(),
            });
        }
        let catalogue = plan(connection, &mut found).await?;
        Ok((found, catalogue))
    }
    .await;
    match &read {
        Err(Fault::Lost(_) | Fault::Ended(_) | Fault::Hopeless(_)) => {}
        Ok(_) | Err(Fault::Refused(_)) => drop(connection.query("ROLLBACK", PATIENCE).await?),
    }
    read
}

/// Finds out how the columns' values become JSON.
async fn plan(connection: &mut Connection, tables: &mut [Option<Table>]) -> Result<Catalogue, Fault> {
    let mut oids: Vec<u32> = tables.iter().flatten().flat_map(|table| &table.columns).map(|column| column.type_oid).collect();
    oids.sort_unstable();
    oids.dedup();
    let answer = connection.query(&types::query(oids), PATIENCE).await?;
    let text = answer.first().ok_or_else(|| Fault::Lost("the catalogue of types has no answer".to_owned()))?.text(0)?;
    let catalogue = Catalogue::read(text).map_err(|error| Fault::Lost(format!("the catalogue of types cannot be read: {error}")))?;
    for column in tables.iter_mut().flatten().flat_map(|table| &mut table.columns) {
        column.plan = catalogue.plan(column.type_oid).map_err(|refusal| refusal.to_string());
    }
    Ok(catalogue)
}

fn place(cells: &Answer) -> Result<usize, Fault> {
    Ok(cells.number::<usize>(0)? - 1)
}

fn letter(cells: &Answer, index: usize) -> Result<char, Fault> {
    Ok(cells.text(index)?.chars().next().unwrap_or(' '))
}

/// The expression that lists the columns in the expression of a generated column; `column` and `default` are the aliases of its rows in
/// `pg_attribute` and `pg_attrdef`. Until version 14 it is the column itself that depends on the others, and not its expression.
pub(super) fn inputs_of(column: &str, default: &str) -> String {
    format!(
        "to_json(array(SELECT DISTINCT i.attname::text FROM pg_depend p JOIN pg_attribute i ON i.attrelid = p.refobjid AND i.attnum = p.refobjsubid \
         WHERE p.refclassid = 'pg_class'::regclass AND p.refobjid = {column}.attrelid AND p.refobjsubid > 0 AND p.refobjsubid <> {column}.attnum \
         AND (p.classid = 'pg_attrdef'::regclass AND p.objid = {default}.oid OR p.classid = 'pg_class'::regclass AND p.objid = {column}.attrelid \
         AND p.objsubid = {column}.attnum) ORDER BY 1))"
    )
}

pub(super) fn names_of(json: &str) -> Result<Vec<String>, Fault> {
    serde_json::from_str(json).map_err(|error| Fault::Lost(format!("the server's answer is no list of names: {error}")))
}

impl Column {
    /// All that decides how its values look, and that it is the same column.
    fn fingerprint(&self) -> String {
        let generated = self.generated.as_ref().map(|generated| format!(" as {}", generated.expression)).unwrap_or_default();
        let collation = self.collation.as_ref().map(|name| format!(" COLLATE {name}")).unwrap_or_default();
        format!("{}{collation} #{} {}{generated}", self.declared, self.number, self.definition())
    }

    /// What its type is made of.
    fn definition(&self) -> &str {
        self.plan.as_ref().map_or("", Plan::definition)
    }
}

impl Table {
    /// The primary key's columns, in order; empty where there is none.
    pub fn primary_key(&self) -> &[String] {
        self.unique.iter().find(|key| key.primary).map_or(&[], |key| &key.columns)
    }

    /// The table as SQL writes it.
    pub fn sql_name(&self) -> String {
        format!("{}.{}", super::wire::quoted(&self.schema), super::wire::quoted(&self.relation))
    }

    /// The same, without the tables that inherit from it: their rows are told under their own names, and may have its keys a second time.
    pub(super) fn only(&self) -> String {
        let only = if self.kind == 'r' { "ONLY " } else { "" };
        format!("{only}{}", self.sql_name())
    }

    /// What a mapping may use of it.
    pub fn mapped(&self) -> TableSchema {
        let not_null = |name: &String| self.columns.iter().any(|column| column.name == *name && column.not_null);
        let leaf = |leaf: &Leaf| format!("{}/{}/{}", leaf.oid, leaf.file, leaf.attached);
        let membership = self.membership.map_or(String::new(), |membership| format!("{}/{}", membership.oid, membership.version));
        TableSchema {
            columns: self
                .columns
                .iter()
                .map(|column| ColumnSchema {
                    name: column.name.clone(),
                    // What cannot be part of a key is refused where a key asks for it.
                    kind: column.plan.as_ref().ok().and_then(Plan::key_type).unwrap_or(ColumnType::Text),
                    declared: column.fingerprint(),
                })
                .collect(),
            primary_key: self.primary_key().to_vec(),
            unique: self.unique.iter().filter(|key| key.columns.iter().all(not_null)).map(|key| key.columns.clone()).collect(),
            // Another table of the same name, rows that were rewritten without a word in the log, partitions that came or went, a
            // time without publication or with one that left changes out, a type of the user's that a key may be made of: each must
            // be read anew.
            definition: format!(
                "{} of {} in {} with {}",
                self.oid,
                self.leaves.iter().map(leaf).collect::<Vec<_>>().join(","),
                membership,
                self.columns
                    .iter()
                    .filter(|column| column.type_oid >= FIRST_OF_USERS)
                    .map(Column::definition)
                    .collect::<Vec<_>>()
                    .join(",")
            ),
        }
    }

    /// The column of this name.
    pub(super) fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }
}

impl From<Misfit> for Error {
    fn from(misfit: Misfit) -> Error {
        Error::Fatal(misfit.text)
    }
}
