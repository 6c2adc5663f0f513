//! Entities with every kind of key.

pub mod user {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "users")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        pub name: String,
    }

    #[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    rowcast_sea_orm::hooks!(ActiveModel);
}

pub mod country {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "countries")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub code: String,
        pub name: String,
    }

    #[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    rowcast_sea_orm::hooks!(ActiveModel);
}

pub mod membership {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "memberships")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub team: String,
        #[sea_orm(primary_key, auto_increment = false)]
        pub user_id: i64,
        #[sea_orm(primary_key, auto_increment = false)]
        pub badge: Vec<u8>,
        pub role: String,
    }

    #[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    rowcast_sea_orm::hooks!(ActiveModel);
}

pub mod wide {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "wide")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub a: i64,
        #[sea_orm(primary_key, auto_increment = false)]
        pub b: i64,
        #[sea_orm(primary_key, auto_increment = false)]
        pub c: i64,
        #[sea_orm(primary_key, auto_increment = false)]
        pub d: i64,
        #[sea_orm(primary_key, auto_increment = false)]
        pub e: i64,
    }

    #[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    rowcast_sea_orm::hooks!(ActiveModel);
}

/// An entity that the database does not have.
pub mod ghost {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "ghosts")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
    }

    #[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    rowcast_sea_orm::hooks!(ActiveModel);
}

/// An entity with a behaviour of its own, which calls the hooks' functions.
pub mod note {
    use sea_orm::entity::prelude::*;
    use sea_orm::prelude::async_trait::async_trait;
    use sea_orm::{ActiveValue, Set};

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(table_name = "Notes")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        pub text: String,
    }

    #[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    #[async_trait]
    impl ActiveModelBehavior for ActiveModel {
        async fn before_save<C: ConnectionTrait>(mut self, db: &C, insert: bool) -> Result<Self, DbErr> {
            if let ActiveValue::Set(text) = &self.text {
                self.text = Set(text.trim().to_owned());
            }
            rowcast_sea_orm::before_save(&self, db, insert).await?;
            Ok(self)
        }

        async fn after_save<C: ConnectionTrait>(model: Model, db: &C, insert: bool) -> Result<Model, DbErr> {
            rowcast_sea_orm::after_save(&model, db, insert).await?;
            Ok(model)
        }

        async fn before_delete<C: ConnectionTrait>(self, db: &C) -> Result<Self, DbErr> {
            rowcast_sea_orm::before_delete(&self, db).await?;
            Ok(self)
        }
    }
}

/// SeaORM 2's own form of an entity, whose builder opens transactions itself.
pub mod project {
    use sea_orm::entity::prelude::*;

    #[sea_orm::model]
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "projects")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        pub name: String,
        #[sea_orm(has_many)]
        pub tasks: HasMany<super::task::Entity>,
    }

    rowcast_sea_orm::hooks!(ActiveModel);
}

/// What belongs to a project.
pub mod task {
    use sea_orm::entity::prelude::*;

    #[sea_orm::model]
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "tasks")]
    pub struct Model {
        #[sea_orm(primary_key)]
        pub id: i64,
        pub project_id: i64,
        pub title: String,
        #[sea_orm(belongs_to, from = "project_id", to = "id")]
        pub project: HasOne<super::project::Entity>,
    }

    rowcast_sea_orm::hooks!(ActiveModel);
}

/// A key of what PostgreSQL alone has, in a schema of its own.
pub mod mood {
    use sea_orm::entity::prelude::*;

    #[derive(Clone, Debug, PartialEq, Eq, EnumIter, DeriveActiveEnum)]
    #[sea_orm(rs_type = "String", db_type = "Enum", enum_name = "mood")]
    pub enum Mood {
        #[sea_orm(string_value = "fine")]
        Fine,
        #[sea_orm(string_value = "it's \\ \"odd\"")]
        Odd,
    }

    #[derive(Clone, Debug, PartialEq, DeriveEntityModel)]
    #[sea_orm(schema_name = "Other", table_name = "the \"moods\"")]
    pub struct Model {
        #[sea_orm(primary_key, auto_increment = false)]
        pub mood: Mood,
        #[sea_orm(primary_key, auto_increment = false, column_name = "it's")]
        pub flag: bool,
        pub name: String,
    }

    #[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    rowcast_sea_orm::hooks!(ActiveModel);
}
