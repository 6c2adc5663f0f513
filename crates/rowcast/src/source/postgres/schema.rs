//! The tables as the catalogue has them: columns, keys, replica identity, partitions, and whether they are published.

use std::time::Duration;

use super::super::Error;
use super::Capture;
use super::types::{self, Catalogue};
use super::values::Plan;
use super::wire::{Answer, Connection, Fault, literal};
use crate::finding::Setting;
use crate::mapping::{ColumnSchema, ColumnType, MappedTable, MappingError, TableSchema, TableSettings};

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
    /// Whether the server computes it. Such a column is not in the log.
    pub generated: bool,
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
    fn has(&self, column: &str) -> bool {
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
    let columns = format!(
        "WITH {wanted} SELECT w.place, a.attnum, a.attname, a.atttypid, format_type(a.atttypid, a.atttypmod), a.attnotnull, \
         a.attgenerated <> '' FROM wanted w JOIN pg_attribute a ON a.attrelid = w.oid \
         WHERE a.attnum > 0 AND NOT a.attisdropped ORDER BY w.place, a.attnum"
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
            table.columns.push(Column {
                number: cells.number(1)?,
                name: cells.text(2)?.to_owned(),
                type_oid: cells.number(3)?,
                plan: Err(String::new()),
                declared: cells.text(4)?.to_owned(),
                not_null: cells.is_true(5),
                generated: cells.is_true(6),
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

fn names_of(json: &str) -> Result<Vec<String>, Fault> {
    serde_json::from_str(json).map_err(|error| Fault::Lost(format!("the server's answer is no list of names: {error}")))
}

impl Column {
    /// All that decides how its values look, and that it is the same column.
    fn fingerprint(&self) -> String {
        format!("{} #{} {}", self.declared, self.number, self.definition())
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
        let columns = self.columns.iter().filter(|column| !column.generated);
        let leaf = |leaf: &Leaf| format!("{}/{}/{}", leaf.oid, leaf.file, leaf.attached);
        let membership = self.membership.map_or(String::new(), |membership| format!("{}/{}", membership.oid, membership.version));
        TableSchema {
            columns: columns
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

    /// Why it cannot be followed, whatever is configured for it; a sentence with the remedy.
    pub fn trouble(&self) -> Option<String> {
        let name = &self.name;
        let kind = match (self.kind, self.persistence) {
            ('r' | 'p', 'p') => None,
            ('r' | 'p', 'u') => {
                Some(format!("is unlogged, so that nothing of it is in the log; run `ALTER TABLE {} SET LOGGED`", self.sql_name()))
            }
            ('r' | 'p', _) => Some("is temporary and belongs to one session; map an ordinary table".to_owned()),
            ('v', _) => Some("is a view; map the tables under it".to_owned()),
            ('m', _) => Some("is a materialized view, whose refreshes are not in the log; map the tables under it".to_owned()),
            ('f', _) => Some("is a foreign table; follow it where it is stored".to_owned()),
            (kind, _) => Some(format!("is of a kind ({kind}) that cannot be followed")),
        };
        let foreign = || {
            let leaf = self.leaves.iter().find(|leaf| leaf.kind != 'r')?;
            Some(format!("has the partition {}, which is a foreign table; detach it", leaf.name))
        };
        let keyless = || {
            self.primary_key().is_empty().then(|| format!("has no primary key; run `ALTER TABLE {} ADD PRIMARY KEY (…)`", self.sql_name()))
        };
        let partition = || self.is_partition.then(|| "is a partition; map the partitioned table, or detach it".to_owned());
        kind.or_else(partition).or_else(foreign).or_else(keyless).map(|text| format!("table {name} {text}"))
    }

    /// Makes settings definite.
    pub(super) fn resolve(&self, settings: &TableSettings, capture: Capture) -> Result<MappedTable, Misfit> {
        let misfit = |setting, text| Err(Misfit { setting, text });
        if let Some(trouble) = self.trouble() {
            return misfit(Setting::Name, trouble);
        }
        if settings.filter.is_some() {
            let text =
                format!("table {}: `where` is not supported for PostgreSQL yet; leave it out, or let the application filter", self.name);
            return misfit(Setting::Where, text);
        }
        let generated = |name: &&String| self.columns.iter().any(|column| column.name == **name && column.generated);
        if let Some(name) = settings.columns.iter().flatten().find(generated) {
            let text =
                format!("table {}: {name} is a generated column, which is not in PostgreSQL's log; leave it out of `columns`", self.name);
            return misfit(Setting::Columns, text);
        }
        let mapped = MappedTable::resolve(settings, &self.mapped())
            .map_err(|error: MappingError| Misfit { setting: error.setting(), text: error.to_string() })?;
        let key_is_generated = self.primary_key().iter().find(generated);
        if let Some(name) = key_is_generated {
            let text = format!("table {}: the key's column {name} is generated and so not in PostgreSQL's log", self.name);
            return misfit(Setting::Key, text);
        }
        for name in &mapped.columns {
            if let Some(Err(refusal)) = self.column(name).map(|column| &column.plan) {
                return misfit(
                    Setting::Columns,
                    format!("table {}, column {name}: {refusal}; leave the column out of `columns`", self.name),
                );
            }
        }
        let template = mapped.descriptor.keys.template.columns().map(|column| &column.column);
        for name in template.chain(self.primary_key()) {
            let key_type = self.column(name).and_then(|column| column.plan.as_ref().ok()).and_then(Plan::key_type);
            if key_type.is_none() {
                let declared = self.column(name).map_or("", |column| &column.declared);
                let text = format!(
                    "table {}: the key's column {name} is of type {declared}, of which two values may look the same in JSON; use a key of \
                     other columns",
                    self.name
                );
                return misfit(Setting::Key, text);
            }
        }
        let untold = match capture {
            Capture::Log => self.identity_misfit(&mapped),
            Capture::Hooks => self.hooks_misfit(&mapped),
        };
        match untold {
            Some(text) => misfit(Setting::Key, text),
            None => Ok(mapped),
        }
    }

    /// The column of this name.
    pub(super) fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// The columns of primary key and template must be told of a row that is gone or has changed its key.
    fn identity_misfit(&self, mapped: &MappedTable) -> Option<String> {
        let template = mapped.descriptor.keys.template.columns().map(|column| column.column.as_str());
        let needed: Vec<&str> = self.primary_key().iter().map(String::as_str).chain(template).collect();
        for leaf in &self.leaves {
            if leaf.identity == Identity::Nothing {
                return Some(format!(
                    "table {}: {} has no replica identity, so that UPDATE and DELETE fail as soon as it is published; run `ALTER TABLE {} \
                     REPLICA IDENTITY DEFAULT`",
                    self.name,
                    leaf.name,
                    sql(&leaf.name)
                ));
            }
            if let Some(column) = needed.iter().find(|column| !leaf.identity.has(column)) {
                return Some(format!(
                    "table {}: the key needs the old value of {column}, which is not in the replica identity of {}; run `ALTER TABLE {} \
                     REPLICA IDENTITY FULL`",
                    self.name,
                    leaf.name,
                    sql(&leaf.name)
                ));
            }
        }
        None
    }
}

impl Table {
    /// Hooks name a row by its primary key, as the application's session writes it.
    fn hooks_misfit(&self, mapped: &MappedTable) -> Option<String> {
        let beside = mapped.descriptor.keys.template.columns().find(|column| !self.primary_key().contains(&column.column));
        if let Some(column) = beside {
            return Some(format!(
                "table {}: the key uses {}, whose old values hooks do not see; build the key from the primary key, or let the server's log \
                 tell (leave out `capture`)",
                self.name, column.column
            ));
        }
        let names = |name: &str| mapped.descriptor.keys.template.columns().any(|column| column.column == name);
        if let Some(left_out) = self.primary_key().iter().find(|name| !names(name)) {
            return Some(format!(
                "table {}: the key leaves out {left_out} of the primary key, so that one row may take the key over from another, and hooks do \
                 not tell which of them came last; build the key from the whole primary key, or let the server's log tell (leave out `capture`)",
                self.name
            ));
        }
        let depends = |name: &&String| self.column(name).and_then(|column| column.plan.as_ref().ok()).is_some_and(Plan::depends_on_session);
        self.primary_key().iter().find(depends).map(|name| {
            let declared = self.column(name).map_or("", |column| &column.declared);
            format!(
                "table {}: the primary key's column {name} is of type {declared}, whose text depends on the settings of the application's \
                 session, so that hooks cannot name a row by it; let the server's log tell (leave out `capture`)",
                self.name
            )
        })
    }
}

/// `schema.name` as SQL writes it.
fn sql(name: &str) -> String {
    let (schema, relation) = split_name(name);
    format!("{}.{}", super::wire::quoted(schema), super::wire::quoted(relation))
}

impl From<Misfit> for Error {
    fn from(misfit: Misfit) -> Error {
        Error::Fatal(misfit.text)
    }
}
