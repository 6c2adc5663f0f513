//! Table row → Redis key and value, and whose a Redis key is. Pure.
//!
//! The publisher maps; the consumer only needs what a batch says of the mapping ([`Descriptor`]).

mod descriptor;
mod options;
mod ownership;
mod table;
mod template;

pub use descriptor::{Descriptor, Keys, Proof, Shape, UnknownMapping};
pub use options::{NotTtl, OnChange, Terms, Ttl};
pub use ownership::{Fields, plain};
pub use table::{ColumnSchema, Mapped, MappedTable, MappingError, TableSchema, TableSettings, nearest};
pub use template::{ColumnType, KeyError, Placeholder, Template, TemplateError};
