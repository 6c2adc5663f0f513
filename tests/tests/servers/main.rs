//! Everything that runs against real servers, in one binary.

mod broker;
mod rabbitmq;
