//! A consumer's connection to one partition's queue.

use futures_util::{FutureExt, StreamExt};
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, Consumer};

use super::errors::failed;
use super::link::{self, answer};
use super::outgoing::{Outgoing, Sender};
use super::settings::RabbitSettings;
use super::topology::{Declaring, Names, look, short};
use super::{content, dial};
use crate::broker::{Delivery, Error, PartitionQueue};
use crate::change::Partition;

/// One partition's queue. Nothing is published on its connection: RabbitMQ blocks whoever publishes while it is short of memory,
/// and lapin would then hold back the acks that relieve it.
pub struct RabbitQueue {
    name: String,
    connection: Connection,
    channel: Channel,
    consumer: Consumer,
    sender: Sender,
    /// Opened by the first request or dead letter, dropped when it fails.
    outgoing: Option<Outgoing>,
    /// Why the connection is over. Once set nothing else is ever said.
    over: Option<String>,
}

impl RabbitQueue {
    /// Connects, makes what is missing, and begins to consume.
    pub(super) async fn connect(
        settings: &RabbitSettings,
        names: &Names,
        sender: Sender,
        partition: Partition,
    ) -> Result<RabbitQueue, Error> {
        let connection = dial::connect(settings, &partition.to_string()).await?;
        let name = names.partition(partition);
        let opening = async {
            let channel = link::channel(&connection).await?;
            let declaring = Declaring { channel: &channel, settings, names };
            declaring.exchange().await?;
            declaring.partition(partition).await?;
            let what = format!("consuming the queue {name}");
            let options = BasicQosOptions::default();
            channel.basic_qos(settings.prefetch, options).await.map_err(|error| failed(&what, &error))?;
            let consumer = channel
                .basic_consume(short(&name), "".into(), BasicConsumeOptions::default(), FieldTable::default())
                .await
                .map_err(|error| failed(&what, &error))?;
            Ok((channel, consumer))
        };
        let (channel, consumer) = answer(&connection, "preparing to consume", opening).await?;
        Ok(RabbitQueue { name, connection, channel, consumer, sender, outgoing: None, over: None })
    }

    fn check(&self) -> Result<(), Error> {
        self.over.as_ref().map_or(Ok(()), |why| Err(Error::Lost(why.clone())))
    }

    /// Ends the connection; what is unacked returns.
    fn end(&mut self, error: Error) -> Error {
        link::begin_close(&self.channel);
        self.over = Some(error.to_string());
        error
    }

    fn lost(&mut self, why: String) -> Error {
        self.end(Error::Lost(why))
    }

    fn receive(&mut self, received: Option<lapin::Result<lapin::message::Delivery>>) -> Result<Delivery, Error> {
        match received {
            Some(Ok(delivery)) => Ok(Delivery { tag: delivery.delivery_tag, body: content::decode(&delivery.properties, delivery.data) }),
            Some(Err(error)) => Err(self.lost(format!("the connection to RabbitMQ ended: {error}"))),
            None => Err(self.lost(format!("the channel was closed, or the queue {} is gone", self.name))),
        }
    }

    /// The connection for what is sent, opened if there is none.
    async fn outgoing(&mut self) -> Result<&Outgoing, Error> {
        if self.outgoing.as_ref().is_some_and(|outgoing| !outgoing.alive()) {
            self.outgoing = None;
        }
        let opened = match self.outgoing.take() {
            Some(outgoing) => outgoing,
            None => self.sender.open().await?,
        };
        Ok(self.outgoing.insert(opened))
    }
}

impl PartitionQueue for RabbitQueue {
    async fn next(&mut self) -> Result<Delivery, Error> {
        self.check()?;
        let received = self.consumer.next().await;
        self.receive(received)
    }

    fn ready(&mut self) -> Option<Delivery> {
        if self.over.is_some() {
            return None;
        }
        let received = self.consumer.next().now_or_never()?;
        // An end is kept in `over`, for `next` to tell.
        self.receive(received).ok()
    }

    async fn ack(&mut self, tag: u64) -> Result<(), Error> {
        self.check()?;
        match self.channel.basic_ack(tag, BasicAckOptions { multiple: true }).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.lost(format!("acking a message of the queue {} failed: {error}", self.name))),
        }
    }

    async fn request(&mut self, body: Vec<u8>) -> Result<(), Error> {
        self.check()?;
        self.outgoing().await?.request(body)
    }

    async fn dead_letter(&mut self, body: Vec<u8>) -> Result<(), Error> {
        self.check()?;
        let result = self.outgoing().await?.dead_letter(body).await;
        if result.is_err() {
            self.outgoing = None;
        }
        result
    }

    async fn depth(&mut self) -> Result<u64, Error> {
        self.check()?;
        let what = format!("looking at the queue {}", self.name);
        let looking = async { look(&self.channel, &self.name).await.map_err(|error| failed(&what, &error)) };
        match answer(&self.connection, &what, looking).await {
            Ok(queue) => Ok(u64::from(queue.message_count())),
            Err(error) => Err(self.end(error)),
        }
    }

    async fn leave(self) -> Result<(), Error> {
        self.check()?;
        answer(&self.connection, "leaving the queue", link::close(&self.channel)).await
    }
}

impl Drop for RabbitQueue {
    fn drop(&mut self) {
        link::begin_close(&self.channel);
    }
}
