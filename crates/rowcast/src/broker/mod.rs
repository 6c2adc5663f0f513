//! The broker between the two halves: what publisher and consumer ask of it, whichever it is.
//!
//! A broker knows nothing of sources and caches. It owns its connections; when one is over every method says so with an
//! error, and the caller connects anew. Nothing reconnects by itself behind the caller's back.

use std::future::Future;

use crate::change::Partition;

pub mod memory;
pub mod rabbitmq;

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// The exchange, with the partition as routing key.
    Partition(Partition),
    /// The position record: the newest message replaces the one before.
    Record,
    /// Dead letters.
    Dead,
}

/// A message on its way out.
#[derive(Clone, Debug)]
pub struct Message {
    /// Where it goes.
    pub to: Address,
    /// The AMQP property `type`.
    pub kind: &'static str,
    /// The text; compressed on the wire above 4 KiB.
    pub body: Vec<u8>,
}

/// Numbers the messages of one [`Publishing`] from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// What a publishing connection has to tell.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The broker has taken responsibility for this message, and for no other: tickets may be confirmed out of order.
    Confirmed(Ticket),
    /// Somebody asks something of the publisher. Until [`Publishing::settle`] is told the number, it comes again to the next
    /// publisher.
    Control {
        /// The request.
        body: Vec<u8>,
        /// What it is settled by.
        number: u64,
    },
    /// The broker takes no messages for now (its alarm); what was handed over waits.
    Blocked(String),
    /// It does again.
    Unblocked,
}

/// A message that was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Grows with each delivery of one [`PartitionQueue`]; what is acked.
    pub tag: u64,
    /// The text, decompressed.
    pub body: Vec<u8>,
}

/// Why a connection is over, or could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Connect again after a pause.
    #[error("{0}")]
    Lost(String),
    /// Another publisher of the pipeline is at work; try again after a pause.
    #[error("{0}")]
    Standby(String),
    /// Somebody has to do something; the text says what.
    #[error("{0}")]
    Fatal(String),
}

/// Queue depths and the like, for `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// The queue's name.
    pub name: String,
    /// Messages ready for delivery; `None` where the queue does not exist.
    pub depth: Option<u64>,
    /// Consumers, active or standing by.
    pub consumers: u64,
}

/// A broker for one pipeline.
pub trait Broker: Clone + Send + Sync + 'static {
    /// The publisher's connection.
    type Publishing: Publishing;
    /// A consumer's connection to one partition.
    type Queue: PartitionQueue;

    /// Connects as the pipeline's publisher: takes the exclusive queue on this very connection, then declares exchange and
    /// queues.
    fn publishing(&self) -> impl Future<Output = Result<Self::Publishing, Error>> + Send;

    /// Connects as a consumer of one partition. Declares what is missing.
    fn queue(&self, partition: Partition) -> impl Future<Output = Result<Self::Queue, Error>> + Send;

    /// Removes the queues of a layout that no consumer works with any more.
    fn remove_layout(&self, of: u16) -> impl Future<Output = Result<(), Error>> + Send;

    /// Hands a request to the publisher, whoever that is, from outside of consumer and publisher.
    fn request(&self, body: Vec<u8>) -> impl Future<Output = Result<(), Error>> + Send;

    /// Looks at every queue of the pipeline without touching it.
    fn inspect(&self) -> impl Future<Output = Result<Vec<QueueState>, Error>> + Send;
}

/// The publisher's connection. Dropping it ends it.
pub trait Publishing: Send {
    /// The position record as it stands, left where it is. To be called before the first publish; not cancel safe.
    fn record(&mut self) -> impl Future<Output = Result<Option<Vec<u8>>, Error>> + Send;

    /// Hands a message over, in order; the answer comes as [`Event::Confirmed`]. Does not wait for the network, so the caller
    /// bounds what is unconfirmed. A refused, returned or unanswerable message ends the connection: [`Publishing::event`]
    /// says so, and no message of the unconfirmed ones may be taken as delivered.
    fn publish(&mut self, message: Message) -> impl Future<Output = Result<Ticket, Error>> + Send;

    /// The next event. Cancel safe.
    fn event(&mut self) -> impl Future<Output = Result<Event, Error>> + Send;

    /// The request with this number is taken care of, and does not come again. Does not wait for the network: it may come again
    /// all the same if the connection ends soon after.
    fn settle(&mut self, number: u64) -> impl Future<Output = Result<(), Error>> + Send;

    /// Whether every partition's queue is still there and bound: a publish alone only says that somebody got the message. Returns the
    /// partitions whose queue nobody consumes, as far as that can be told now.
    fn look_for_queues(&mut self) -> impl Future<Output = Result<Vec<Partition>, Error>> + Send;
}

/// A consumer's connection to one partition's queue. Dropping it, or [`PartitionQueue::leave`], returns what was not acked to the
/// head of the queue, in order.
pub trait PartitionQueue: Send {
    /// The next message; waits. Cancel safe.
    fn next(&mut self) -> impl Future<Output = Result<Delivery, Error>> + Send;

    /// A message that has already arrived, without waiting.
    fn ready(&mut self) -> Option<Delivery>;

    /// Everything up to and including `tag` is done. It may come again all the same if the connection ends soon after.
    fn ack(&mut self, tag: u64) -> impl Future<Output = Result<(), Error>> + Send;

    /// Hands a request to the publisher. It may be lost.
    fn request(&mut self, body: Vec<u8>) -> impl Future<Output = Result<(), Error>> + Send;

    /// Sets a message aside; returns once the broker has confirmed it.
    fn dead_letter(&mut self, body: Vec<u8>) -> impl Future<Output = Result<(), Error>> + Send;

    /// How many messages wait in the queue, those already delivered to this consumer not counted.
    fn depth(&mut self) -> impl Future<Output = Result<u64, Error>> + Send;

    /// Leaves by closing the channel, with its deliveries unacked.
    fn leave(self) -> impl Future<Output = Result<(), Error>> + Send;
}
