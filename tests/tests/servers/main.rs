//! Everything that runs against real servers, in one binary.

mod broker;
mod cache;
mod rabbitmq;
mod redis;
mod sqlite;
