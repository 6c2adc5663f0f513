//! The demo's model and what is done with it: plain SeaORM. The one line of hooks does the rest.

use std::path::Path;

use rowcast_sea_orm::{Operation, record};
use sea_orm::entity::prelude::*;
use sea_orm::{Database, DatabaseTransaction, Schema, Set, Unchanged};

/// A row of `users`.
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "users")]
pub struct Model {
    /// Given by the database.
    #[sea_orm(primary_key)]
    pub id: i64,
    /// What people call them.
    pub name: String,
    /// Where to write to them.
    pub email: String,
}

/// Users stand alone.
#[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
pub enum Relation {}

rowcast_sea_orm::hooks!(ActiveModel);

/// Creates the database with the table and rowcast's changelog.
pub async fn open(path: &Path) -> Result<DatabaseConnection, DbErr> {
    let db = Database::connect(format!("sqlite:{}?mode=rwc", path.display())).await?;
    db.execute_unprepared("PRAGMA journal_mode = WAL").await?;
    db.execute(&Schema::new(db.get_database_backend()).create_table_from_entity(Entity)).await?;
    rowcast_sea_orm::install(&db).await?;
    Ok(db)
}

/// A user who is not in the database yet, which gives the id.
pub fn new(name: &str, email: &str) -> ActiveModel {
    ActiveModel { name: Set(name.to_owned()), email: Set(email.to_owned()), ..Default::default() }
}

/// Inserts a user.
pub async fn insert(txn: &DatabaseTransaction, name: &str, email: &str) -> Result<Model, DbErr> {
    new(name, email).insert(txn).await
}

/// Inserts many users with one statement. SeaORM runs no hooks for that, so the changelog is told. Returns their ids.
pub async fn insert_many(txn: &DatabaseTransaction, users: Vec<ActiveModel>) -> Result<Vec<i64>, DbErr> {
    let ids = Entity::insert_many(users).exec_with_returning_keys(txn).await?;
    record::<Entity, _>(txn, Operation::Insert, ids.iter().copied()).await?;
    Ok(ids)
}

/// Changes a user's name.
pub async fn rename(txn: &DatabaseTransaction, id: i64, name: &str) -> Result<Model, DbErr> {
    ActiveModel { id: Unchanged(id), name: Set(name.to_owned()), ..Default::default() }.update(txn).await
}

/// Deletes a user.
pub async fn delete(txn: &DatabaseTransaction, id: i64) -> Result<(), DbErr> {
    ActiveModel { id: Unchanged(id), ..Default::default() }.delete(txn).await.map(drop)
}
