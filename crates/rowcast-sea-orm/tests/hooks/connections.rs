//! Which connections the hooks take: those that are in a transaction, whatever they are called.

use sea_orm::prelude::async_trait::async_trait;
use sea_orm::{
    ActiveModelTrait, ConnectionTrait, DatabaseBackend, DatabaseExecutor, DbErr, ExecResult, ModelTrait, QueryResult, Set, Statement,
    TransactionTrait, Unchanged,
};

use crate::database::{TestDatabase, assert_says};
use crate::entities::user;

const REFUSAL: &[&str] = &["users", "nothing was written", "db.begin()", "commit()", "rowcast install"];

fn ada() -> user::ActiveModel {
    user::ActiveModel { name: Set("Ada".to_owned()), ..Default::default() }
}

/// An application's own connection type.
pub struct Wrapped<'c, C>(pub &'c C);

#[async_trait]
impl<C: ConnectionTrait> ConnectionTrait for Wrapped<'_, C> {
    fn get_database_backend(&self) -> DatabaseBackend {
        self.0.get_database_backend()
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        self.0.execute_raw(statement).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        self.0.execute_unprepared(sql).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        self.0.query_one_raw(statement).await
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        self.0.query_all_raw(statement).await
    }
}

async fn assert_refused<C: ConnectionTrait>(database: &TestDatabase, db: &C) {
    let rows = database.count("users").await;
    assert_says(ada().insert(db).await, REFUSAL);
    assert_says(ada().save(db).await, REFUSAL);
    let row = || user::ActiveModel { id: Unchanged(1), name: Set("Countess".to_owned()) };
    assert_says(row().update(db).await, REFUSAL);
    assert_says(row().save(db).await, REFUSAL);
    assert_says(row().update_without_returning(db).await, REFUSAL);
    assert_says(row().delete(db).await, REFUSAL);
    assert_eq!(database.count("users").await, rows);
    assert_eq!(database.text("SELECT name FROM users WHERE id = 1").await, "Ada");
    assert_eq!(database.changelog().await, [""; 0]);
}

async fn with_one_row() -> TestDatabase {
    let database = TestDatabase::installed().await;
    database.db.execute_unprepared("INSERT INTO users VALUES (1, 'Ada')").await.unwrap();
    database
}

#[tokio::test]
async fn a_plain_connection_is_refused_before_anything_is_written() {
    let database = with_one_row().await;
    assert_refused(&database, &database.db).await;
}

#[tokio::test]
async fn an_executor_or_a_wrapper_around_a_plain_connection_is_refused_as_well() {
    let database = with_one_row().await;
    assert_refused(&database, &DatabaseExecutor::from(&database.db)).await;
    assert_refused(&database, &Wrapped(&database.db)).await;
}

#[tokio::test]
async fn a_connection_is_refused_again_after_it_was_in_a_transaction() {
    let database = with_one_row().await;
    let txn = database.db.begin().await.unwrap();
    ada().insert(&Wrapped(&txn)).await.unwrap();
    txn.rollback().await.unwrap();
    assert_refused(&database, &Wrapped(&database.db)).await;
}

#[tokio::test]
async fn everything_that_stands_for_a_transaction_is_taken() {
    let database = TestDatabase::installed().await;
    let txn = database.db.begin().await.unwrap();
    ada().insert(&txn).await.unwrap();
    ada().insert(&DatabaseExecutor::from(&txn)).await.unwrap();
    ada().insert(&Wrapped(&txn)).await.unwrap();
    ada().insert(&Wrapped(&DatabaseExecutor::from(&txn))).await.unwrap();
    let nested = txn.begin().await.unwrap();
    ada().insert(&nested).await.unwrap();
    let owned = DatabaseExecutor::OwnedTransaction(nested);
    ada().insert(&owned).await.unwrap();
    let DatabaseExecutor::OwnedTransaction(nested) = owned else { unreachable!() };
    nested.commit().await.unwrap();
    txn.commit().await.unwrap();
    assert_eq!(database.changelog().await.len(), 6);
    assert_eq!(database.count("users").await, 6);
}

#[tokio::test]
async fn a_transaction_that_has_done_nothing_yet_is_recognised() {
    let database = TestDatabase::installed().await;
    let txn = database.db.begin().await.unwrap();
    ada().insert(&Wrapped(&txn)).await.unwrap();
    txn.commit().await.unwrap();
    assert_eq!(database.changelog().await, ["users I 1"]);
}

#[tokio::test]
async fn a_closure_in_a_transaction_is_taken() {
    let database = TestDatabase::installed().await;
    let inserted = database.db.transaction::<_, user::Model, DbErr>(|txn| Box::pin(async move { ada().insert(txn).await })).await.unwrap();
    assert_eq!(inserted.id, 1);
    assert_eq!(database.changelog().await, ["users I 1"]);
}

#[tokio::test]
async fn a_nested_transaction_that_is_rolled_back_takes_its_rows_with_it() {
    let database = TestDatabase::installed().await;
    let txn = database.db.begin().await.unwrap();
    ada().insert(&txn).await.unwrap();
    let nested = txn.begin().await.unwrap();
    ada().insert(&nested).await.unwrap();
    nested.rollback().await.unwrap();
    txn.commit().await.unwrap();
    assert_eq!(database.changelog().await, ["users I 1"]);
    assert_eq!(database.count("users").await, 1);
}

#[tokio::test]
async fn who_carries_on_after_sqlite_has_rolled_back_itself_learns_it_at_the_commit_at_last() {
    let database = TestDatabase::installed().await;
    let trigger = "CREATE TRIGGER never BEFORE INSERT ON notes BEGIN SELECT RAISE(ROLLBACK, 'never'); END";
    database.db.execute_unprepared(trigger).await.unwrap();
    let txn = database.db.begin().await.unwrap();
    ada().insert(&txn).await.unwrap();
    assert_says(txn.execute_unprepared("INSERT INTO notes(text) VALUES ('x')").await, &["never"]);
    assert_eq!((database.changelog().await.len(), database.count("users").await), (0, 0), "both went together");
    // A connection that says itself what it is would be refused; this one is taken by its name.
    assert_says(ada().insert(&Wrapped(&txn)).await, REFUSAL);
    ada().insert(&txn).await.unwrap();
    assert_says(txn.commit().await, &["no transaction is active"]);
    assert_eq!(database.changelog().await, ["users I 1"], "what was written is recorded all the same");
    assert_eq!(database.count("users").await, 1);
}

/// A transaction that reads before it writes fails at once if somebody else has written meanwhile; one that writes first waits.
/// So hooks must not read first.
#[tokio::test]
async fn the_hooks_do_not_read_before_the_first_write() {
    let database = TestDatabase::installed().await;
    for model in [ada(), user::ActiveModel { id: Unchanged(1), name: Set("Countess".to_owned()) }] {
        let txn = database.db.begin().await.unwrap();
        rowcast_sea_orm::before_save(&ada(), &Wrapped(&txn), true).await.unwrap();
        database.db.execute_unprepared("INSERT INTO notes(text) VALUES ('meanwhile')").await.unwrap();
        model.save(&Wrapped(&txn)).await.unwrap();
        txn.commit().await.unwrap();
    }
    assert_eq!(database.changelog().await, ["users I 1", "users U 1"]);
}

/// A connection to another kind of database. Nothing may be asked of it.
struct Foreign;

#[async_trait]
impl ConnectionTrait for Foreign {
    fn get_database_backend(&self) -> DatabaseBackend {
        DatabaseBackend::MySql
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        panic!("{statement}")
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        panic!("{sql}")
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        panic!("{statement}")
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        panic!("{statement}")
    }
}

#[tokio::test]
async fn a_database_without_a_changelog_of_its_kind_is_refused_before_the_row_is_written() {
    assert_says(ada().insert(&Foreign).await, &["users", "MySql", "SQLite or PostgreSQL", "hooks!"]);
    assert_says(user::Model { id: 1, name: "Ada".to_owned() }.delete(&Foreign).await, &["users", "MySql"]);
}
