//! RabbitMQ: what only a real server and a real network can do to a connection.

use std::sync::LazyLock;

use rowcast::broker::rabbitmq::{QueueType, RabbitBroker, RabbitSettings};
use rowcast_testkit::rabbitmq::RabbitServer;

use crate::broker::PARTITIONS;

/// For tests that do nothing to the server. It ends with the process.
static SHARED: LazyLock<RabbitServer> = LazyLock::new(|| RabbitServer::start().expect("a RabbitMQ server"));

/// A broker on the shared server; the test's name keeps its pipeline apart.
pub fn shared_broker(test: &str, queue_type: QueueType) -> RabbitBroker {
    let server = tokio::task::block_in_place(|| &*SHARED);
    broker(&server.url(), test, queue_type)
}

fn broker(url: &str, test: &str, queue_type: QueueType) -> RabbitBroker {
    let pipeline = format!("{test}-{}", queue_type.name());
    RabbitBroker::new(RabbitSettings::new(url, &pipeline, PARTITIONS, queue_type).expect("settings"))
}
