//! The guide's `User` model and what its publisher does with it: plain SeaORM.
//!
//! None of these functions knows of a broker or a cache. The hooks on the model ([`user`]) write down each change in the
//! transaction that makes it, and rowcast ships it from there.

use std::io::IsTerminal;
use std::path::Path;

use sea_orm::ActiveValue::{NotSet, Set, Unchanged};
use sea_orm::{ActiveModelTrait, ConnectionTrait, Database, DatabaseConnection, DbErr, EntityTrait, QueryOrder, Schema, TransactionTrait};

pub mod user;

/// What the pipeline is called, in RabbitMQ and in Redis.
pub const PIPELINE: &str = "users";

/// How many queues share the changes, and so how many consumers can share the work.
pub const PARTITIONS: u16 = 4;

/// rowcast says what it does through `tracing`; this shows it, and keeps it apart from what the programs print.
pub fn log_to_stderr() {
    let rowcast = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn,rowcast=info,lapin=off".into());
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(rowcast).with_target(false).with_ansi(colours).with_writer(std::io::stderr).init();
}

/// Opens or creates the database, with the `users` table and rowcast's changelog.
pub async fn open(path: &Path) -> Result<DatabaseConnection, DbErr> {
    let db = Database::connect(format!("sqlite:{}?mode=rwc", path.display())).await?;
    // With a write-ahead log, writers and readers of other programs do not wait for each other.
    db.execute_unprepared("PRAGMA journal_mode = WAL").await?;
    let mut users = Schema::new(db.get_database_backend()).create_table_from_entity(user::Entity);
    db.execute(users.if_not_exists()).await?;
    rowcast_sea_orm::install(&db).await?;
    Ok(db)
}

/// Inserts a user, to whom the database gives an id.
pub async fn insert_user(db: &DatabaseConnection, name: &str, email: &str) -> Result<user::Model, DbErr> {
    let txn = db.begin().await?;
    let user = new_user(name, email).insert(&txn).await?;
    txn.commit().await?;
    Ok(user)
}

/// Inserts many users in one transaction: all of them or none.
pub async fn insert_users(db: &DatabaseConnection, users: impl IntoIterator<Item = (String, String)>) -> Result<(), DbErr> {
    let txn = db.begin().await?;
    for (name, email) in users {
        new_user(&name, &email).insert(&txn).await?;
    }
    txn.commit().await
}

/// Changes what is given of a user, and returns the user as it now is.
pub async fn update_user(db: &DatabaseConnection, id: i64, name: Option<&str>, email: Option<&str>) -> Result<user::Model, DbErr> {
    let given = |text: Option<&str>| text.map_or(NotSet, |text| Set(text.to_owned()));
    let txn = db.begin().await?;
    let change = user::ActiveModel { id: Unchanged(id), name: given(name), email: given(email) };
    let user = change.update(&txn).await.map_err(|error| match error {
        DbErr::RecordNotUpdated | DbErr::RecordNotFound(_) => no_such_user(id),
        other => other,
    })?;
    txn.commit().await?;
    Ok(user)
}

/// Deletes a user.
pub async fn delete_user(db: &DatabaseConnection, id: i64) -> Result<(), DbErr> {
    let txn = db.begin().await?;
    let deleted = user::ActiveModel { id: Unchanged(id), ..Default::default() }.delete(&txn).await?;
    if deleted.rows_affected == 0 {
        return Err(no_such_user(id));
    }
    txn.commit().await
}

/// All users, oldest first.
pub async fn list_users(db: &DatabaseConnection) -> Result<Vec<user::Model>, DbErr> {
    user::Entity::find().order_by_asc(user::Column::Id).all(db).await
}

fn new_user(name: &str, email: &str) -> user::ActiveModel {
    user::ActiveModel { name: Set(name.to_owned()), email: Set(email.to_owned()), ..Default::default() }
}

fn no_such_user(id: i64) -> DbErr {
    DbErr::RecordNotFound(format!("no user has the id {id}"))
}

#[cfg(test)]
mod tests {
    use sea_orm::{DatabaseBackend, Statement};

    use super::*;

    async fn empty() -> (DatabaseConnection, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        (open(&folder.path().join("db.sqlite")).await.unwrap(), folder)
    }

    /// What rowcast will read: operation and key of each change.
    async fn recorded(db: &DatabaseConnection) -> Vec<String> {
        let query = Statement::from_string(DatabaseBackend::Sqlite, "SELECT op || v1 FROM rowcast_changelog ORDER BY id");
        db.query_all_raw(query).await.unwrap().iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
    }

    #[tokio::test]
    async fn a_user_is_inserted_changed_and_deleted_and_each_change_is_recorded() {
        let (db, _folder) = empty().await;
        let john = insert_user(&db, "John Doe", "john@example.com").await.unwrap();
        assert_eq!(john, user::Model { id: 1, name: "John Doe".into(), email: "john@example.com".into() });

        let renamed = update_user(&db, 1, Some("John Q. Doe"), None).await.unwrap();
        assert_eq!(renamed, user::Model { name: "John Q. Doe".into(), ..john });
        assert_eq!(list_users(&db).await.unwrap(), [renamed]);

        delete_user(&db, 1).await.unwrap();
        assert_eq!(list_users(&db).await.unwrap(), []);
        assert_eq!(recorded(&db).await, ["I1", "U1", "D1"]);
    }

    #[tokio::test]
    async fn an_unknown_id_is_an_error_that_names_it_and_records_nothing() {
        let (db, _folder) = empty().await;
        for error in [update_user(&db, 7, Some("Nobody"), None).await.unwrap_err(), delete_user(&db, 7).await.unwrap_err()] {
            assert!(error.to_string().contains("no user has the id 7"), "{error}");
        }
        assert_eq!(recorded(&db).await, [""; 0]);
    }

    #[tokio::test]
    async fn many_users_are_inserted_and_recorded_one_by_one() {
        let (db, _folder) = empty().await;
        insert_users(&db, (1..=3).map(|n| (format!("User {n}"), format!("user{n}@example.com")))).await.unwrap();
        assert_eq!(list_users(&db).await.unwrap().len(), 3);
        assert_eq!(recorded(&db).await, ["I1", "I2", "I3"]);
    }

    #[tokio::test]
    async fn an_existing_database_is_opened_as_it_is() {
        let (db, folder) = empty().await;
        insert_user(&db, "John Doe", "john@example.com").await.unwrap();
        db.close().await.unwrap();

        let db = open(&folder.path().join("db.sqlite")).await.unwrap();
        assert_eq!(list_users(&db).await.unwrap().len(), 1);
        assert_eq!(recorded(&db).await, ["I1"]);
    }

    #[tokio::test]
    async fn the_key_of_the_table_is_sqlites_own_row_id() {
        let (db, _folder) = empty().await;
        let query = Statement::from_string(DatabaseBackend::Sqlite, "SELECT sql FROM sqlite_master WHERE name = 'users'");
        let sql: String = db.query_one_raw(query).await.unwrap().unwrap().try_get_by_index(0).unwrap();
        assert!(sql.to_lowercase().contains("\"id\" integer not null primary key"), "{sql}");
    }
}
