//! Everything that runs against real servers, in one binary.

mod broker;
mod cache;
mod faults;
mod postgres;
mod rabbitmq;
mod redis;
mod sqlite;
