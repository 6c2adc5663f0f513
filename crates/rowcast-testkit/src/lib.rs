//! What rowcast's own tests stand on: real servers on free ports in temporary folders, a faulty proxy, and oracles.
//!
//! Nothing here ships. Every server is started by the test that needs it and ends with it, even if the test is killed.

pub mod certificates;
pub mod folder;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod rabbitmq;
pub mod redis;
pub mod wait;
