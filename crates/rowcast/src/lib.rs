//! rowcast keeps a Redis cache in step with a SQL database through RabbitMQ.
//!
//! The path of a change is the list of rooms: [`source`] → [`publisher`] → [`broker`] → [`consumer`] → [`cache`]. What they
//! share are the nouns in [`change`], the [`batch`] that travels, and the decision in [`checkpoint`].

mod backoff;
pub mod batch;
pub mod broker;
pub mod cache;
pub mod change;
pub mod checkpoint;
pub mod config;
pub mod consumer;
pub mod dead_letter;
pub mod finding;
pub mod mapping;
pub mod meter;
pub mod publisher;
pub mod request;
pub mod source;
pub mod stop;
pub mod verify;
