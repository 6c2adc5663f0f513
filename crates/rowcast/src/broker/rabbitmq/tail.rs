//! Looking on: every batch that goes by, through a queue that ends with whoever looks.

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer, ExchangeKind};
use ulid::Ulid;

use super::errors::failed;
use super::topology::{classic, short};
use super::{NOT_FOUND, RabbitBroker, content, dial, link, reply_code};
use crate::broker::Error;
use crate::change::Partition;

/// What may wait for somebody who reads slowly. Beyond it the oldest batches go, so that looking on costs the broker no more
/// than this; the next one then shows that something is missing.
const QUEUE_BYTES_MAX: i64 = 64 << 20;

/// Batches on their way to us at most.
const PREFETCH: u16 = 32;

/// A queue of its own at the pipeline's exchange. Dropping it removes the queue.
pub struct RabbitTail {
    connection: Connection,
    channel: Channel,
    consumer: Consumer,
    name: String,
    partitions: Vec<Partition>,
}

impl RabbitBroker {
    /// Looks on from now on. The pipeline's consumers notice nothing of it.
    pub async fn tail(&self) -> Result<RabbitTail, Error> {
        let connection = dial::connect(&self.settings, "tail").await?;
        let name = format!("{}.tail-{}", self.names.exchange, Ulid::generate());
        let (channel, consumer) = link::answer(&connection, "preparing to look on", self.open_tail(&connection, &name)).await?;
        let partitions = Partition::all(self.settings.partitions).collect();
        Ok(RabbitTail { connection, channel, consumer, name, partitions })
    }

    async fn open_tail(&self, connection: &Connection, name: &str) -> Result<(Channel, Consumer), Error> {
        let channel = link::channel(connection).await?;
        let exchange = &self.names.exchange;
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        channel.exchange_declare(short(exchange), ExchangeKind::Direct, options, FieldTable::default()).await.map_err(|error| {
            match reply_code(&error) {
                Some(NOT_FOUND) => Error::Fatal(format!(
                    "there is no exchange {exchange}, so the pipeline {} has never run on this broker; start it with `rowcast run`",
                    self.settings.pipeline
                )),
                _ => failed(&format!("looking at the exchange {exchange}"), &error),
            }
        })?;
        let mut arguments = classic();
        arguments.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(QUEUE_BYTES_MAX));
        let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let what = format!("declaring the queue {name}");
        channel.queue_declare(short(name), options, arguments).await.map_err(|error| failed(&what, &error))?;
        for partition in Partition::all(self.settings.partitions) {
            channel
                .queue_bind(short(name), short(exchange), partition.to_string().into(), QueueBindOptions::default(), FieldTable::default())
                .await
                .map_err(|error| failed(&format!("binding the queue {name}"), &error))?;
        }
        let what = format!("consuming the queue {name}");
        channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.map_err(|error| failed(&what, &error))?;
        let consumer = channel
            .basic_consume(short(name), "".into(), BasicConsumeOptions::default(), FieldTable::default())
            .await
            .map_err(|error| failed(&what, &error))?;
        Ok((channel, consumer))
    }
}

impl RabbitTail {
    /// The next batch and its partition. Whoever drops the future may lose the batch in hand, which nobody but this queue had.
    pub async fn next(&mut self) -> Result<(Partition, Vec<u8>), Error> {
        let lost = |why: String| Error::Lost(format!("the connection to RabbitMQ ended: {why}"));
        let delivery = match self.consumer.next().await {
            Some(Ok(delivery)) => delivery,
            Some(Err(error)) => return Err(lost(error.to_string())),
            None => return Err(lost(format!("the queue {} is gone", self.name))),
        };
        self.channel
            .basic_ack(delivery.delivery_tag, BasicAckOptions::default())
            .await
            .map_err(|error| failed("acking a message", &error))?;
        let key = delivery.routing_key.as_str();
        let partition = self.partitions.iter().find(|partition| partition.to_string() == key).copied();
        let partition = partition.ok_or_else(|| Error::Fatal(format!("a message came for {key}, which the queue is not bound to")))?;
        Ok((partition, content::decode(&delivery.properties, delivery.data)))
    }
}

impl Drop for RabbitTail {
    fn drop(&mut self) {
        link::begin_close_connection(&self.connection);
    }
}
