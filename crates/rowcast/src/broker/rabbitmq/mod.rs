//! RabbitMQ 3.10 to 4.x as the broker.
//!
//! Connections are made here and never mended: whoever uses one that is over is told, and connects again. The publisher and each
//! partition's consumer have a connection of their own; what consumers send goes over one more.

use std::sync::Arc;

use lapin::options::QueueDeleteOptions;
use lapin::{Connection, ErrorKind};

use self::errors::failed;
use self::link::answer;
use self::outgoing::Sender;
use self::topology::{Names, look, short};
use crate::broker::{Broker, Error, QueueState};
use crate::change::Partition;

mod check;
mod content;
mod dial;
mod errors;
mod greeting;
mod link;
mod outgoing;
mod publishing;
mod queue;
mod removal;
mod settings;
mod tail;
mod topology;

pub use self::publishing::RabbitPublishing;
pub use self::queue::RabbitQueue;
pub use self::settings::{InvalidSetting, QueueType, RabbitSettings};
pub use self::tail::RabbitTail;

/// AMQP's reply code for a queue that does not exist.
const NOT_FOUND: u16 = 404;

/// AMQP's reply code for a queue that another connection owns.
const RESOURCE_LOCKED: u16 = 405;

/// A pipeline's exchange and queues on a RabbitMQ server. Making one connects to nothing.
#[derive(Clone)]
pub struct RabbitBroker {
    settings: Arc<RabbitSettings>,
    names: Arc<Names>,
    sender: Sender,
}

impl RabbitBroker {
    /// The broker that the settings describe.
    pub fn new(settings: RabbitSettings) -> RabbitBroker {
        let names = Arc::new(Names::of(&settings.pipeline));
        let settings = Arc::new(settings);
        RabbitBroker { sender: Sender::new(settings.clone(), names.clone()), settings, names }
    }

    /// Looks at one queue on a channel of its own, which a missing queue closes.
    async fn look_at(connection: &Connection, name: String) -> Result<QueueState, Error> {
        let channel = link::channel(connection).await?;
        match look(&channel, &name).await {
            Ok(queue) => {
                let (depth, consumers) = (u64::from(queue.message_count()), u64::from(queue.consumer_count()));
                Ok(QueueState { name, depth: Some(depth), consumers })
            }
            Err(error) => match reply_code(&error) {
                Some(NOT_FOUND) => Ok(QueueState { name, depth: None, consumers: 0 }),
                // The publisher's lock: it exists, and is always empty.
                Some(RESOURCE_LOCKED) => Ok(QueueState { name, depth: Some(0), consumers: 0 }),
                _ => Err(failed(&format!("looking at the queue {name}"), &error)),
            },
        }
    }
}

fn reply_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

impl Broker for RabbitBroker {
    type Publishing = RabbitPublishing;
    type Queue = RabbitQueue;

    async fn publishing(&self) -> Result<RabbitPublishing, Error> {
        RabbitPublishing::connect((*self.settings).clone(), (*self.names).clone()).await
    }

    async fn queue(&self, partition: Partition) -> Result<RabbitQueue, Error> {
        RabbitQueue::connect(&self.settings, &self.names, self.sender.clone(), partition).await
    }

    async fn remove_layout(&self, of: u16) -> Result<(), Error> {
        let connection = dial::connect(&self.settings, "layout").await?;
        let removing = async {
            let channel = link::channel(&connection).await?;
            for partition in Partition::all(of) {
                let name = self.names.partition(partition);
                // A queue that is not there is deleted already: the broker says so itself.
                channel
                    .queue_delete(short(&name), QueueDeleteOptions::default())
                    .await
                    .map_err(|error| failed(&format!("deleting the queue {name}"), &error))?;
            }
            Ok(())
        };
        answer(&connection, "deleting the queues of the old layout", removing).await
    }

    async fn request(&self, body: Vec<u8>) -> Result<(), Error> {
        self.sender.open().await?.request_confirmed(body).await
    }

    async fn inspect(&self) -> Result<Vec<QueueState>, Error> {
        let connection = dial::connect(&self.settings, "inspection").await?;
        let partitions = Partition::all(self.settings.partitions).map(|partition| self.names.partition(partition));
        let others = [&self.names.control, &self.names.position, &self.names.dead, &self.names.publisher].map(String::clone);
        let looking = async {
            let mut states = Vec::new();
            for name in partitions.chain(others) {
                states.push(Self::look_at(&connection, name).await?);
            }
            Ok(states)
        };
        answer(&connection, "looking at the queues", looking).await
    }
}
