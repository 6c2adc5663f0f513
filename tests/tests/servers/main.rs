//! Everything that runs against real servers and other programs, in one binary.

mod broker;
mod cache;
mod rabbitmq;
mod redis;
mod sqlite;
