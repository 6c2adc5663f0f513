//! PostgreSQL without its log: a changelog that is filled in the application's own transactions.
//!
//! What hooks would write a trigger writes here, so that the application can be any SQL. What hooks themselves write is tried in
//! `crates/rowcast-sea-orm`.

mod commits;
mod existing;
mod history;
mod rights;
mod stress;

use rowcast::mapping::TableSettings;
use rowcast_testkit::postgres::PostgresServer;

use super::Pipeline;
use super::pipeline::{DEADLINE, oracle, table};

/// A table with a number `v` that a writer only ever raises, and a hundred rows.
const ROWS: &str = "CREATE SEQUENCE s; CREATE TABLE t(id int PRIMARY KEY, v bigint NOT NULL DEFAULT nextval('s'));
                    INSERT INTO t SELECT i FROM generate_series(1, 100) i;";

/// Names what the row was and is, as hooks do, from whichever table this is put on.
const RECORDING: &str = "CREATE FUNCTION record() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                           IF TG_OP <> 'INSERT' THEN INSERT INTO rowcast.changelog(tbl, op, key)
                             VALUES (TG_RELID, 'D', json_build_object('id', OLD.id)); END IF;
                           IF TG_OP <> 'DELETE' THEN INSERT INTO rowcast.changelog(tbl, op, key)
                             VALUES (TG_RELID, left(TG_OP, 1), json_build_object('id', NEW.id)); END IF;
                           RETURN NULL; END $$;";

/// A pipeline on these tables, every change of which is recorded; each has a column `id`.
async fn recorded(server: &PostgresServer, tables: Vec<TableSettings>) -> Pipeline {
    let pipeline = Pipeline::hooked(server, tables).await;
    let names = pipeline.settings.tables.iter().map(|table| table.name.as_str());
    let triggers: String = names.map(recording).collect();
    server.execute(&format!("{RECORDING} {triggers}")).unwrap();
    pipeline
}

/// Records every change of a table from now on.
fn recording(table: &str) -> String {
    format!("CREATE TRIGGER record AFTER INSERT OR UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION record();")
}
