//! The frontend/backend protocol, version 3, as far as a source needs it: connecting, simple queries, and the copy-both mode of
//! replication. <https://www.postgresql.org/docs/current/protocol.html>
//!
//! `docs/decisions/0008-postgres-client.md` says why this is our own. Nothing reconnects by itself, nothing is retried, and every
//! wait has an end.

mod connection;
mod dial;
mod fault;
mod tls;

pub(super) use connection::{Answer, Connection, Frame, literal, quoted};
pub(super) use dial::{Role, dial};
pub(super) use fault::{Fault, ServerError, code};
