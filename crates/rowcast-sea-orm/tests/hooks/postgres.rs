//! The same hooks on PostgreSQL: the entities do not know which database they are on.

use rowcast_sea_orm::{Operation, record};
use rowcast_testkit::postgres::PostgresServer;
use sea_orm::{
    ActiveModelTrait, ColumnTrait, ConnectionTrait, Database, DatabaseConnection, DatabaseExecutor, DbErr, EntityTrait, IntoActiveModel,
    QueryFilter, Set, TransactionTrait, Unchanged,
};

use crate::connections::Wrapped;
use crate::database::assert_says;
use crate::entities::{country, ghost, membership, mood, project, task, user, wide};

const TABLES: &str = "
    CREATE TABLE users(id bigserial PRIMARY KEY, name text NOT NULL);
    CREATE TABLE countries(code varchar(10) PRIMARY KEY, name text NOT NULL);
    CREATE TABLE memberships(badge bytea, team text, user_id bigint, role text NOT NULL, PRIMARY KEY(user_id, badge, team));
    CREATE TABLE wide(a bigint, b bigint, c bigint, d bigint, e bigint, PRIMARY KEY(a, b, c, d, e));
    CREATE TABLE projects(id bigserial PRIMARY KEY, name text NOT NULL);
    CREATE TABLE tasks(id bigserial PRIMARY KEY, project_id bigint NOT NULL REFERENCES projects(id), title text NOT NULL);
    CREATE SCHEMA \"Other\";
    CREATE TYPE mood AS ENUM ('fine', E'it\\'s \\\\ \"odd\"');
    CREATE TABLE \"Other\".\"the \"\"moods\"\"\"(mood mood, \"it's\" boolean, name text, PRIMARY KEY(mood, \"it's\"));";

struct TestServer {
    db: DatabaseConnection,
    server: PostgresServer,
}

impl TestServer {
    /// With tables, without a changelog.
    async fn without_changelog() -> TestServer {
        let server = PostgresServer::start().unwrap();
        server.execute(TABLES).unwrap();
        TestServer { db: Database::connect(server.url()).await.unwrap(), server }
    }

    async fn installed() -> TestServer {
        let server = TestServer::without_changelog().await;
        rowcast_sea_orm::install(&server.db).await.unwrap();
        server
    }

    /// The changelog, oldest first: table, operation and key.
    fn changelog(&self) -> Vec<String> {
        let sql = "SELECT tbl::regclass || ' ' || op || ' ' || key FROM rowcast.changelog ORDER BY id";
        self.server.execute(sql).unwrap().lines().map(str::to_owned).collect()
    }

    fn count(&self, table: &str) -> String {
        self.server.execute(&format!("SELECT count(*) FROM {table}")).unwrap()
    }
}

fn ada() -> user::ActiveModel {
    user::ActiveModel { name: Set("Ada".to_owned()), ..Default::default() }
}

#[tokio::test]
async fn every_operation_of_a_model_writes_one_row_of_its_transaction() {
    let server = TestServer::installed().await;
    let txn = server.db.begin().await.unwrap();
    let inserted = ada().insert(&txn).await.unwrap();
    let mut changed = inserted.into_active_model();
    changed.name = Set("Countess".to_owned());
    let updated = changed.update(&txn).await.unwrap();
    let saved = ada().save(&txn).await.unwrap();
    let saved = user::ActiveModel { name: Set("Babbage".to_owned()), ..saved }.save(&txn).await.unwrap();
    user::ActiveModel { name: Set("Charles".to_owned()), ..saved }.update_without_returning(&txn).await.unwrap();
    updated.into_active_model().delete(&txn).await.unwrap();
    assert_eq!(server.changelog(), [""; 0], "nothing is visible before the commit");
    txn.commit().await.unwrap();
    let of = |op: &str, id: u8| format!(r#"users {op} {{"id" : {id}}}"#);
    assert_eq!(server.changelog(), [of("I", 1), of("U", 1), of("I", 2), of("U", 2), of("U", 2), of("D", 1)]);
    assert_eq!(server.server.execute("SELECT count(DISTINCT xid), count(DISTINCT at) > 1 FROM rowcast.changelog").unwrap(), "1|t");
}

#[tokio::test]
async fn what_is_rolled_back_leaves_no_row() {
    let server = TestServer::installed().await;
    let txn = server.db.begin().await.unwrap();
    ada().insert(&txn).await.unwrap();
    txn.rollback().await.unwrap();
    let txn = server.db.begin().await.unwrap();
    ada().insert(&txn).await.unwrap();
    let nested = txn.begin().await.unwrap();
    ada().insert(&nested).await.unwrap();
    nested.rollback().await.unwrap();
    let nested = txn.begin().await.unwrap();
    ada().insert(&nested).await.unwrap();
    nested.commit().await.unwrap();
    txn.commit().await.unwrap();
    assert_eq!(server.changelog(), [r#"users I {"id" : 2}"#, r#"users I {"id" : 4}"#]);
    assert_eq!(
        server.server.execute("SELECT count(DISTINCT xid) FROM rowcast.changelog").unwrap(),
        "1",
        "a savepoint has no number of its own"
    );
}

#[tokio::test]
async fn keys_of_every_kind_are_recorded_as_the_row_has_them() {
    let server = TestServer::installed().await;
    let txn = server.db.begin().await.unwrap();
    country::ActiveModel { code: Set("gb \"x\"".to_owned()), name: Set("Britain".to_owned()) }.insert(&txn).await.unwrap();
    let (team, badge, role) = (Set("red".to_owned()), Set(vec![0, 255]), Set("lead".to_owned()));
    membership::ActiveModel { team, user_id: Set(7), badge, role }.insert(&txn).await.unwrap();
    wide::ActiveModel { a: Set(1), b: Set(-2), c: Set(i64::MAX), d: Set(4), e: Set(5) }.insert(&txn).await.unwrap();
    let model = mood::ActiveModel { mood: Set(mood::Mood::Odd), flag: Set(true), name: Set("x".to_owned()) }.insert(&txn).await.unwrap();
    model.into_active_model().delete(&txn).await.unwrap();
    record::<mood::Entity, _>(&txn, Operation::Update, [(mood::Mood::Fine, false)]).await.unwrap();
    txn.commit().await.unwrap();
    let odd = r#""Other"."the ""moods""" I {"mood" : "it's \\ \"odd\"", "it's" : true}"#;
    assert_eq!(
        server.changelog(),
        [
            r#"countries I {"code" : "gb \"x\""}"#,
            r#"memberships I {"team" : "red", "user_id" : 7, "badge" : "\\x00ff"}"#,
            r#"wide I {"a" : 1, "b" : -2, "c" : 9223372036854775807, "d" : 4, "e" : 5}"#,
            odd,
            &odd.replace(" I ", " D "),
            r#""Other"."the ""moods""" U {"mood" : "fine", "it's" : false}"#,
        ]
    );
}

#[tokio::test]
async fn only_connections_in_a_transaction_are_taken_whatever_they_are_called() {
    let server = TestServer::installed().await;
    let refusal = ["users", "nothing was written", "db.begin()", "server's own log"];
    assert_says(ada().insert(&server.db).await, &refusal);
    assert_says(ada().insert(&DatabaseExecutor::from(&server.db)).await, &refusal);
    assert_says(ada().insert(&Wrapped(&server.db)).await, &refusal);
    assert_says(record::<user::Entity, _>(&server.db, Operation::Insert, [1]).await, &refusal);
    assert_eq!(server.count("users"), "0");
    let txn = server.db.begin().await.unwrap();
    ada().insert(&Wrapped(&txn)).await.unwrap();
    ada().insert(&DatabaseExecutor::from(&txn)).await.unwrap();
    let nested = txn.begin().await.unwrap();
    ada().insert(&Wrapped(&nested)).await.unwrap();
    nested.commit().await.unwrap();
    txn.commit().await.unwrap();
    assert_says(ada().insert(&Wrapped(&server.db)).await, &refusal);
    server.db.transaction::<_, user::Model, DbErr>(|txn| Box::pin(async move { ada().insert(txn).await })).await.unwrap();
    assert_eq!(server.changelog().len(), 4);
}

#[tokio::test]
async fn a_model_with_its_children_and_what_bulk_statements_do_are_recorded() {
    let server = TestServer::installed().await;
    let with_tasks = project::ActiveModel::builder()
        .set_name("engine")
        .add_task(task::ActiveModel::builder().set_title("gears"))
        .add_task(task::ActiveModel::builder().set_title("cards"));
    with_tasks.insert(&server.db).await.unwrap().delete(&server.db).await.unwrap();
    let of = |table: &str, op: &str, id: u32| format!(r#"{table} {op} {{"id" : {id}}}"#);
    assert_eq!(
        server.changelog(),
        [
            of("projects", "I", 1),
            of("tasks", "I", 1),
            of("tasks", "I", 2),
            of("tasks", "D", 1),
            of("tasks", "D", 2),
            of("projects", "D", 1)
        ]
    );
    server.server.execute("TRUNCATE rowcast.changelog").unwrap();
    let txn = server.db.begin().await.unwrap();
    let many = user::Entity::insert_many((0..2_500).map(|_| ada())).exec_with_returning_keys(&txn).await.unwrap();
    record::<user::Entity, _>(&txn, Operation::Insert, many).await.unwrap();
    record::<user::Entity, _>(&txn, Operation::Delete, [7, 8]).await.unwrap();
    user::Entity::delete_many().filter(user::Column::Id.is_in([7, 8])).exec(&txn).await.unwrap();
    record::<user::Entity, _>(&txn, Operation::Update, []).await.unwrap();
    txn.commit().await.unwrap();
    let expected = (1..=2_500).map(|id| of("users", "I", id)).chain([of("users", "D", 7), of("users", "D", 8)]);
    assert_eq!(server.changelog(), expected.collect::<Vec<_>>());
}

#[tokio::test]
async fn an_entity_whose_key_is_not_the_tables_or_that_the_database_lacks_is_refused() {
    let server = TestServer::installed().await;
    server.server.execute("ALTER TABLE countries DROP CONSTRAINT countries_pkey, ADD PRIMARY KEY (name)").unwrap();
    let txn = server.db.begin().await.unwrap();
    let row = country::ActiveModel { code: Set("gb".to_owned()), name: Set("Britain".to_owned()) };
    assert_says(row.insert(&txn).await, &["countries", "(code)", "(name)", "same columns"]);
    txn.rollback().await.unwrap();
    let txn = server.db.begin().await.unwrap();
    assert_says(ghost::ActiveModel { id: Set(1) }.insert(&txn).await, &["ghosts", "does not exist"]);
    txn.rollback().await.unwrap();
    server.server.execute("CREATE VIEW ghosts AS SELECT id FROM users").unwrap();
    let txn = server.db.begin().await.unwrap();
    assert_says(record::<ghost::Entity, _>(&txn, Operation::Update, [1]).await, &["ghosts", "the table's is ()"]);
}

#[tokio::test]
async fn columns_that_the_primary_keys_index_includes_are_no_part_of_the_key() {
    let server = TestServer::installed().await;
    server.server.execute("ALTER TABLE users DROP CONSTRAINT users_pkey, ADD PRIMARY KEY (id) INCLUDE (name)").unwrap();
    let txn = server.db.begin().await.unwrap();
    ada().insert(&txn).await.unwrap();
    txn.commit().await.unwrap();
    assert_eq!(server.changelog(), [r#"users I {"id" : 1}"#]);
}

#[tokio::test]
async fn without_a_changelog_or_the_right_to_write_it_the_error_says_what_to_do() {
    let server = TestServer::without_changelog().await;
    let missing = ["users", "no rowcast changelog", "rowcast install", "rowcast_sea_orm::install"];
    let txn = server.db.begin().await.unwrap();
    assert_says(ada().insert(&txn).await, &missing);
    txn.rollback().await.unwrap();
    assert_eq!(server.count("users"), "0");

    rowcast_sea_orm::install(&server.db).await.unwrap();
    server.server.execute("CREATE ROLE app LOGIN; GRANT ALL ON users TO app; GRANT USAGE ON SEQUENCE users_id_seq TO app").unwrap();
    let app = Database::connect(server.server.url_as("app", "", "postgres")).await.unwrap();
    let may_not = ["users", "may not write rowcast's changelog", "GRANT INSERT"];
    assert_says(rowcast_sea_orm::install(&app).await, &["may not read its format", "GRANT SELECT ON rowcast.meta"]);
    for grant in ["GRANT USAGE ON SCHEMA rowcast TO app", "GRANT INSERT (tbl, op, key) ON rowcast.changelog TO app"] {
        let txn = app.begin().await.unwrap();
        assert_says(ada().insert(&txn).await, &may_not);
        txn.rollback().await.unwrap();
        server.server.execute(grant).unwrap();
    }
    server.server.execute("GRANT SELECT ON rowcast.meta TO app").unwrap();
    rowcast_sea_orm::install(&app).await.unwrap();
    let txn = app.begin().await.unwrap();
    let row = ada().insert(&txn).await.unwrap();
    txn.execute_unprepared("SAVEPOINT x").await.unwrap();
    let forged = "INSERT INTO rowcast.changelog(xid, tbl, op, key) VALUES ('1', 0, 'I', '{}')";
    assert_says(txn.execute_unprepared(forged).await, &["permission denied"]);
    txn.execute_unprepared("ROLLBACK TO x").await.unwrap();
    txn.commit().await.unwrap();
    assert_eq!(server.changelog(), [format!(r#"users I {{"id" : {}}}"#, row.id)]);
}

#[tokio::test]
async fn installing_again_and_at_once_changes_nothing() {
    let server = TestServer::without_changelog().await;
    let other = Database::connect(server.server.url()).await.unwrap();
    let (one, two) = tokio::join!(rowcast_sea_orm::install(&server.db), rowcast_sea_orm::install(&other));
    one.unwrap();
    two.unwrap();
    let everything = "SELECT * FROM rowcast.meta ORDER BY name";
    let before = server.server.execute(everything).unwrap();
    rowcast_sea_orm::install(&server.db).await.unwrap();
    assert_eq!(server.server.execute(everything).unwrap(), before);
    server.server.execute("UPDATE rowcast.meta SET value = '2' WHERE name = 'format'").unwrap();
    assert_says(rowcast_sea_orm::install(&server.db).await, &["format 2", "format 1"]);
    let txn = server.db.begin().await.unwrap();
    user::ActiveModel { id: Unchanged(1), name: Set("x".to_owned()) }.update(&txn).await.unwrap_err();
}
