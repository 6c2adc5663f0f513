//! The whole path on real servers while things go wrong: SQLite, the real `rowcast`, RabbitMQ and Redis, with somebody writing all
//! the while and somebody reading all the while.
//!
//! [`world::World`] sets it up and judges it; each test strikes once or a few times and says what must not have followed.

mod backlog;
mod binary;
mod broker;
mod cache;
mod consumers;
mod contents;
mod half;
mod layout;
mod mapping;
mod more;
mod network;
mod options;
mod publishers;
mod schema;
mod source;
mod ten;
mod watcher;
mod world;
mod writer;

pub use binary::rowcast;
