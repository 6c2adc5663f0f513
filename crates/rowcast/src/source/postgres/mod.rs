//! PostgreSQL by logical replication.

#[cfg(test)]
mod hostile;
mod literal;
pub mod pgoutput;
pub mod row;
#[cfg(test)]
mod samples;
pub mod types;
pub mod values;
