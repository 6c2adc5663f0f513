//! Names, arguments and the making of exchange and queues. Declaring is idempotent; who asks for something else is told so.

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{Channel, ExchangeKind, Queue};

use super::errors::failed;
use super::settings::{QueueType, RabbitSettings};
use crate::broker::Error;
use crate::change::Partition;

/// Redeliveries are no reason to drop a batch. RabbitMQ 4 would do so after 20; -1 makes 3.10 drop at the first.
const DELIVERY_LIMIT: i64 = 2_147_483_647;

/// Askings that wait for a publisher: beyond this the oldest go, and are asked again.
const CONTROL_LENGTH_MAX: i64 = 1000;

/// What the pipeline's exchange and queues are called.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// Where batches are published, with the partition as routing key.
    pub exchange: String,
    /// Askings for the publisher.
    pub control: String,
    /// The position record.
    pub position: String,
    /// Dead letters.
    pub dead: String,
    /// The publisher's lock.
    pub publisher: String,
}

impl Names {
    pub fn of(pipeline: &str) -> Names {
        let name = |end: &str| format!("rowcast.{pipeline}.{end}");
        Names {
            exchange: format!("rowcast.{pipeline}"),
            control: name("control"),
            position: name("position"),
            dead: name("dead"),
            publisher: name("publisher"),
        }
    }

    /// The queue of a partition.
    pub fn partition(&self, partition: Partition) -> String {
        format!("{}.{partition}", self.exchange)
    }
}

/// What a queue is for, which decides its arguments.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Batches,
    Control,
    Position,
    Dead,
}

fn arguments(purpose: Purpose, queue_type: QueueType) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(LongString::from(queue_type.name())));
    if queue_type == QueueType::Quorum {
        arguments.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERY_LIMIT));
    }
    let own = match purpose {
        // Several consumers share the partitions and take over from each other in order.
        Purpose::Batches => Some(("x-single-active-consumer", AMQPValue::Boolean(true))),
        Purpose::Control => Some(("x-max-length", AMQPValue::LongLongInt(CONTROL_LENGTH_MAX))),
        Purpose::Position => Some(("x-max-length", AMQPValue::LongLongInt(1))),
        Purpose::Dead => None,
    };
    if let Some((name, value)) = own {
        arguments.insert(name.into(), value);
    }
    arguments
}

/// The arguments of a queue that ends with its connection: where quorum is the vhost's default type, an exclusive queue would
/// be refused.
pub(super) fn classic() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString(LongString::from(QueueType::Classic.name())));
    arguments
}

/// Declares things on one channel, by name and in the pipeline's own way.
pub(super) struct Declaring<'a> {
    pub channel: &'a Channel,
    pub settings: &'a RabbitSettings,
    pub names: &'a Names,
}

impl Declaring<'_> {
    /// The exchange, for whoever binds to it or publishes through it.
    pub async fn exchange(&self) -> Result<(), Error> {
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let name = &self.names.exchange;
        self.channel
            .exchange_declare(short(name), ExchangeKind::Direct, options, FieldTable::default())
            .await
            .map_err(|error| failed(&format!("declaring the exchange {name}"), &error))
    }

    /// A partition's queue, bound to the exchange.
    pub async fn partition(&self, partition: Partition) -> Result<(), Error> {
        self.queue(&self.names.partition(partition), Purpose::Batches).await?;
        self.bind(partition).await
    }

    /// The binding alone; the queue must exist.
    pub async fn bind(&self, partition: Partition) -> Result<(), Error> {
        let name = self.names.partition(partition);
        self.channel
            .queue_bind(
                short(&name),
                short(&self.names.exchange),
                partition.to_string().into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .map_err(|error| failed(&format!("binding the queue {name}"), &error))
    }

    pub async fn control(&self) -> Result<(), Error> {
        self.queue(&self.names.control, Purpose::Control).await
    }

    pub async fn position(&self) -> Result<(), Error> {
        self.queue(&self.names.position, Purpose::Position).await
    }

    pub async fn dead(&self) -> Result<(), Error> {
        self.queue(&self.names.dead, Purpose::Dead).await
    }

    /// Takes the pipeline's lock: it belongs to this connection until that ends.
    pub async fn lock(&self) -> Result<(), Error> {
        let name = &self.names.publisher;
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        match self.channel.queue_declare(short(name), options, classic()).await {
            Ok(_) => Ok(()),
            Err(error) => Err(match failed(&format!("taking the exclusive queue {name}"), &error) {
                Error::Standby(_) => Error::Standby(format!(
                    "another publisher of the pipeline {:?} is at work (it holds the exclusive queue {name}); this one stands by",
                    self.settings.pipeline
                )),
                other => other,
            }),
        }
    }

    /// A queue of the pipeline.
    pub async fn queue(&self, name: &str, purpose: Purpose) -> Result<(), Error> {
        let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        self.channel
            .queue_declare(short(name), options, arguments(purpose, self.settings.queue_type))
            .await
            .map(|_| ())
            .map_err(|error| failed(&format!("declaring the queue {name}"), &error))
    }
}

/// Looks at a queue without touching it. A queue that is missing, or locked by another connection, closes the channel.
pub(super) async fn look(channel: &Channel, name: &str) -> lapin::Result<Queue> {
    let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(short(name), options, FieldTable::default()).await
}

/// A name in AMQP's form. The settings have seen to its length.
pub(super) fn short(name: &str) -> ShortString {
    ShortString::from(name)
}
