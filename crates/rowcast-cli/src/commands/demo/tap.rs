//! A broker with a tap on what is published: the demo shows a batch as it is handed over, which is how it stands in the queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rowcast::broker::{Address, Broker, Error, Event, Message, Publishing, QueueState, Ticket};
use rowcast::change::Partition;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// A batch on its way.
pub type Tapped = (Partition, Vec<u8>);

/// A broker that lets somebody look on.
#[derive(Clone)]
pub struct Tap<B> {
    broker: B,
    open: Arc<AtomicBool>,
    batches: UnboundedSender<Tapped>,
}

/// Its publishing connection.
pub struct TapPublishing<P> {
    publishing: P,
    open: Arc<AtomicBool>,
    batches: UnboundedSender<Tapped>,
}

impl<B> Tap<B> {
    /// The broker with an open tap, and what comes out of it.
    pub fn new(broker: B) -> (Tap<B>, UnboundedReceiver<Tapped>) {
        let (batches, receiver) = unbounded_channel();
        (Tap { broker, open: Arc::new(AtomicBool::new(true)), batches }, receiver)
    }

    /// Nothing comes out of it any more, so that a load costs nothing extra.
    pub fn close(&self) {
        self.open.store(false, Relaxed);
    }
}

impl<B: Broker> Broker for Tap<B> {
    type Publishing = TapPublishing<B::Publishing>;
    type Queue = B::Queue;

    async fn publishing(&self) -> Result<TapPublishing<B::Publishing>, Error> {
        let publishing = self.broker.publishing().await?;
        Ok(TapPublishing { publishing, open: self.open.clone(), batches: self.batches.clone() })
    }

    async fn queue(&self, partition: Partition) -> Result<B::Queue, Error> {
        self.broker.queue(partition).await
    }

    async fn remove_layout(&self, of: u16) -> Result<(), Error> {
        self.broker.remove_layout(of).await
    }

    async fn request(&self, body: Vec<u8>) -> Result<(), Error> {
        self.broker.request(body).await
    }

    async fn inspect(&self) -> Result<Vec<QueueState>, Error> {
        self.broker.inspect().await
    }
}

impl<P: Publishing> Publishing for TapPublishing<P> {
    async fn record(&mut self) -> Result<Option<Vec<u8>>, Error> {
        self.publishing.record().await
    }

    async fn publish(&mut self, message: Message) -> Result<Ticket, Error> {
        if self.open.load(Relaxed)
            && let Address::Partition(partition) = message.to
        {
            // Whoever looked on may have left.
            drop(self.batches.send((partition, message.body.clone())));
        }
        self.publishing.publish(message).await
    }

    async fn event(&mut self) -> Result<Event, Error> {
        self.publishing.event().await
    }

    async fn settle(&mut self, number: u64) -> Result<(), Error> {
        self.publishing.settle(number).await
    }

    async fn look_for_queues(&mut self) -> Result<Vec<Partition>, Error> {
        self.publishing.look_for_queues().await
    }
}
