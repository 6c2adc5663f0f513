//! Tests on real servers.

mod cache;
mod redis;
