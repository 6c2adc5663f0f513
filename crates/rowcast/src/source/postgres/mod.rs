//! PostgreSQL by logical replication.

mod literal;
pub mod pgoutput;
pub mod row;
pub mod types;
pub mod values;
