//! SeaORM hooks that record changed rows for [rowcast](https://github.com/rowcast/rowcast), **in the transaction that changes them**.
//!
//! rowcast keeps a Redis cache in step with a SQL database. With these hooks an application says itself which rows it
//! changed: one row in rowcast's changelog for every model that is inserted, updated, saved or deleted, on the very
//! connection that the model is written with. Both are committed or neither is. `rowcast publish` reads the changelog and ships the
//! rows; the application never waits for a broker.
//!
//! SQLite and PostgreSQL are written alike, and an entity need not know which it is on. On SQLite triggers are the other way, on PostgreSQL
//! the server's own log, for whoever may use logical replication (`capture = "hooks"` in rowcast's configuration is for whoever may not).
//!
//! # Use
//! Create the changelog once, beside the migrations:
//! ```no_run
//! # async fn start(db: sea_orm::DatabaseConnection) -> Result<(), sea_orm::DbErr> {
//! rowcast_sea_orm::install(&db).await?;
//! # Ok(()) }
//! ```
//! Give an entity the hooks, with one line in the place of `impl ActiveModelBehavior for ActiveModel {}`:
//! ```
//! mod user {
//!     use sea_orm::entity::prelude::*;
//!
//!     #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
//!     #[sea_orm(table_name = "users")]
//!     pub struct Model {
//!         #[sea_orm(primary_key)]
//!         pub id: i64,
//!         pub name: String,
//!     }
//!
//!     #[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
//!     pub enum Relation {}
//!
//!     rowcast_sea_orm::hooks!(ActiveModel);
//! }
//! ```
//! And write in transactions:
//! ```
//! # mod user {
//! #     use sea_orm::entity::prelude::*;
//! #     #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
//! #     #[sea_orm(table_name = "users")]
//! #     pub struct Model { #[sea_orm(primary_key)] pub id: i64, pub name: String }
//! #     #[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
//! #     pub enum Relation {}
//! #     rowcast_sea_orm::hooks!(ActiveModel);
//! # }
//! use sea_orm::{ActiveModelTrait, DatabaseConnection, DbErr, Set, TransactionTrait};
//!
//! async fn insert_user(db: &DatabaseConnection, name: &str) -> Result<user::Model, DbErr> {
//!     let txn = db.begin().await?;
//!     let user = user::ActiveModel { name: Set(name.to_owned()), ..Default::default() }.insert(&txn).await?;
//!     txn.commit().await?;
//!     Ok(user)
//! }
//! ```
//! An entity that has an `impl ActiveModelBehavior` of its own calls [`before_save`], [`after_save`] and [`before_delete`] from
//! it; all three are needed.
//!
//! # Why a transaction is asked for
//! On a plain connection the row and its changelog row would be two transactions, and a crash between them would leave the cache
//! stale for ever. So the hooks refuse such a connection **before the row is written**. A `DatabaseTransaction` and everything
//! that stands for one (nested transactions, a `DatabaseExecutor`, a wrapper of your own) will do. A table of SQLite whose changes are
//! recorded by triggers (`rowcast install`) may be written with any connection: the hooks then leave the recording to the triggers.
//!
//! If a hooked operation fails, roll its transaction back, as one does: what an insert wrote before its hook failed is in it.
//! The same holds for any other statement that fails: PostgreSQL takes nothing more in that transaction. After some errors (a full disk, `RAISE(ROLLBACK)`, `ON CONFLICT ROLLBACK`) SQLite
//! has rolled back itself. Who carries on with that `DatabaseTransaction` writes row and changelog row without one transaction around
//! them, and its `commit()` fails.
//!
//! # What hooks do not see
//! SeaORM runs hooks for operations on one model, and for nothing else. These change rows without a word to the hooks:
//!
//! - `Entity::insert`, `insert_many`, `update`, `update_many`, `delete`, `delete_many`, `delete_by_id`, with whichever `exec`
//!   (`exec_without_returning`, `on_conflict`, …): everything that starts from the entity and not from a model;
//! - the links that `ActiveModelEx` removes in bulk from a junction table;
//! - raw statements, `COPY`, and other programs that write to the database;
//! - rows that the database itself changes: `ON DELETE CASCADE`, triggers, a row displaced by `REPLACE`, partitions that come and go
//!   (`TRUNCATE` and `ALTER TABLE` on PostgreSQL rowcast notices by itself, and reads the table again);
//! - the old value of a changed key. SeaORM cannot change a primary key through a model (it takes the key to find the row), but the
//!   statements above can; and a Redis key may be made of other columns (`key = "user:{email}"`), whose old value only a trigger or the server's log
//!   knows.
//!
//! Where any of this happens to a table that is cached, let triggers record it, or on PostgreSQL the server's log (`capture` left out of
//! rowcast's configuration, then `rowcast install`): they miss nothing. Where it happens in one place only, say `insert_many`, [`record`] tells the changelog
//! what the statement did.
//!
//! Restricted connections (SeaORM's role based access) refuse the statements that the hooks need, and with them the change.

mod changelog;
mod install;
mod postgres;
mod sqlite;
mod transaction;

pub use changelog::Operation;
use changelog::{append, check, recorded_by_triggers, table};
pub use install::install;
use sea_orm::sea_query::IntoValueTuple;
use sea_orm::{
    ActiveModelTrait, ConnectionTrait, DatabaseBackend, DbErr, EntityTrait, Iterable, ModelTrait, PrimaryKeyToColumn, PrimaryKeyTrait,
    Value,
};

#[doc(hidden)]
pub use sea_orm;

/// Gives an entity the hooks: `rowcast_sea_orm::hooks!(ActiveModel);` in the entity's module.
///
/// It is the entity's `impl ActiveModelBehavior`; one that has its own calls [`before_save`], [`after_save`] and
/// [`before_delete`] instead.
#[macro_export]
macro_rules! hooks {
    ($active_model:ty) => {
        #[$crate::sea_orm::entity::prelude::async_trait::async_trait]
        impl $crate::sea_orm::ActiveModelBehavior for $active_model {
            async fn before_save<C>(self, db: &C, insert: bool) -> ::core::result::Result<Self, $crate::sea_orm::DbErr>
            where
                C: $crate::sea_orm::ConnectionTrait,
            {
                $crate::before_save(&self, db, insert).await?;
                ::core::result::Result::Ok(self)
            }

            async fn after_save<C>(
                model: <Self::Entity as $crate::sea_orm::EntityTrait>::Model,
                db: &C,
                insert: bool,
            ) -> ::core::result::Result<<Self::Entity as $crate::sea_orm::EntityTrait>::Model, $crate::sea_orm::DbErr>
            where
                C: $crate::sea_orm::ConnectionTrait,
            {
                $crate::after_save(&model, db, insert).await?;
                ::core::result::Result::Ok(model)
            }

            async fn before_delete<C>(self, db: &C) -> ::core::result::Result<Self, $crate::sea_orm::DbErr>
            where
                C: $crate::sea_orm::ConnectionTrait,
            {
                $crate::before_delete(&self, db).await?;
                ::core::result::Result::Ok(self)
            }
        }
    };
}

/// To be called at the end of `ActiveModelBehavior::before_save`, with what it is about to return.
///
/// Refuses a connection that is not in a transaction, and records an update. An update is recorded here and not after it,
/// because `update_without_returning` has no after.
pub async fn before_save<A: ActiveModelTrait, C: ConnectionTrait>(model: &A, db: &C, insert: bool) -> Result<(), DbErr> {
    let key = if insert { None } else { key_of(model) };
    require_transaction::<A::Entity, C>(db).await?;
    match key {
        Some(key) => append::<A::Entity, C>(db, Operation::Update, &[key]).await,
        // An insert gets its key from the database, and an update without a key is refused by SeaORM.
        None => Ok(()),
    }
}

/// To be called from `ActiveModelBehavior::after_save`, with the model as it was received. Records an insert.
pub async fn after_save<M: ModelTrait, C: ConnectionTrait>(model: &M, db: &C, insert: bool) -> Result<(), DbErr> {
    if !insert {
        return Ok(());
    }
    let key = <M::Entity as EntityTrait>::PrimaryKey::iter().map(|part| model.get(part.into_column())).collect();
    append::<M::Entity, C>(db, Operation::Insert, &[key]).await
}

/// To be called from `ActiveModelBehavior::before_delete`. Refuses a connection that is not in a transaction, and records the delete
/// while the row is still there to say what its key is.
pub async fn before_delete<A: ActiveModelTrait, C: ConnectionTrait>(model: &A, db: &C) -> Result<(), DbErr> {
    let key = key_of(model);
    require_transaction::<A::Entity, C>(db).await?;
    match key {
        Some(key) => append::<A::Entity, C>(db, Operation::Delete, &[key]).await,
        // SeaORM refuses it.
        None => Ok(()),
    }
}

/// Records rows that a statement changes which hooks do not see, by their primary keys; in the statement's own transaction.
///
/// ```
/// # mod user {
/// #     use sea_orm::entity::prelude::*;
/// #     #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
/// #     #[sea_orm(table_name = "users")]
/// #     pub struct Model { #[sea_orm(primary_key)] pub id: i64, pub name: String }
/// #     #[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
/// #     pub enum Relation {}
/// #     rowcast_sea_orm::hooks!(ActiveModel);
/// # }
/// use rowcast_sea_orm::{Operation, record};
/// use sea_orm::{DatabaseConnection, DbErr, EntityTrait, TransactionTrait};
///
/// async fn insert_users(db: &DatabaseConnection, users: Vec<user::ActiveModel>) -> Result<(), DbErr> {
///     let txn = db.begin().await?;
///     let ids = user::Entity::insert_many(users).exec_with_returning_keys(&txn).await?;
///     record::<user::Entity, _>(&txn, Operation::Insert, ids).await?;
///     txn.commit().await
/// }
/// ```
/// Record inserts *after* the statement and deletes **before** it: a key is taken from the row while there is one, for the database
/// may spell it otherwise than the caller does (`'gb'` for `"GB"` under NOCASE, `'7'` for 7). A key that changes is two calls:
/// [`Operation::Delete`] with the old key before, and [`Operation::Insert`] with the new one after. Nothing is recorded where triggers record the
/// table.
///
/// # Errors
/// Those of the hooks: no transaction, no changelog, an entity whose key is not the table's.
pub async fn record<E, C>(
    db: &C,
    operation: Operation,
    keys: impl IntoIterator<Item = <E::PrimaryKey as PrimaryKeyTrait>::ValueType>,
) -> Result<(), DbErr>
where
    E: EntityTrait,
    C: ConnectionTrait,
{
    let keys: Vec<Vec<Value>> = keys.into_iter().map(|key| key.into_value_tuple().into_iter().collect()).collect();
    require_transaction::<E, C>(db).await?;
    append::<E, C>(db, operation, &keys).await
}

/// The primary key's columns in order, if all of them are set.
fn key_of<A: ActiveModelTrait>(model: &A) -> Option<Vec<Value>> {
    <A::Entity as EntityTrait>::PrimaryKey::iter().map(|part| model.get(part.into_column()).into_value()).collect()
}

/// Refuses, before anything is written, what could not be recorded in the same transaction.
async fn require_transaction<E: EntityTrait, C: ConnectionTrait>(db: &C) -> Result<(), DbErr> {
    check::<E, C>(db)?;
    if transaction::is_open(db).await? || recorded_by_triggers::<E, C>(db).await? {
        return Ok(());
    }
    let otherwise = match db.get_database_backend() {
        DatabaseBackend::Postgres => "remove rowcast_sea_orm::hooks! from the entity and let rowcast read the server's own log",
        _ => "let triggers record the table",
    };
    Err(DbErr::Custom(format!(
        "{}: nothing was written, because this connection is not in a transaction: the row and its entry in rowcast's changelog must be \
         committed together. Either `let txn = db.begin().await?;`, this operation with `&txn`, and `txn.commit().await?;` (or \
         db.transaction(…)); or {otherwise}: `rowcast install`",
        table::<E>()
    )))
}
