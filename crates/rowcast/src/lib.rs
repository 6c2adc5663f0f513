//! rowcast keeps a Redis cache in step with a SQL database through RabbitMQ.
//!
//! The path of a change is the list of rooms: [`source`] → [`publisher`] → [`broker`] → [`consumer`] → [`cache`]. What they
//! share are the nouns in [`change`], the [`batch`] that travels, and the decision in [`checkpoint`].

pub mod batch;
pub mod broker;
pub mod cache;
pub mod change;
pub mod checkpoint;
pub mod mapping;
pub mod source;
