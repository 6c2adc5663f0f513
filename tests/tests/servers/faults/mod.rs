//! The whole path on real servers while things go wrong: a database, the real `rowcast`, RabbitMQ and Redis, with somebody writing all
//! the while and somebody reading all the while.
//!
//! [`world::World`] sets it up and judges it; each test strikes once or a few times and says what must not have followed. What holds for
//! every database is tried on SQLite, and on PostgreSQL where `ROWCAST_SOURCE=postgres` says so; [`postgres`] strikes at everything, one
//! after another.

mod backlog;
mod binary;
mod broker;
mod cache;
mod consumers;
mod contents;
mod database;
mod half;
mod layout;
mod mapping;
mod network;
mod postgres;
mod publishers;
mod sqlite;
mod turns;
mod watcher;
mod world;
mod writer;

pub use binary::rowcast;
