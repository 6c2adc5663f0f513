//! What is done with a connection and its channels everywhere: opening, waiting for answers, closing.

use std::time::Duration;

use futures_util::FutureExt;
use lapin::{Channel, Connection};

use super::errors::failed;
use crate::broker::Error;

/// How long the broker may take to answer or to confirm while it is not blocked. Confirms may never come, with heartbeats going
/// on all the while.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// AMQP's code and text for an end without an error.
const DONE: (u16, &str) = (200, "done");

/// Opens a channel.
pub(super) async fn channel(connection: &Connection) -> Result<Channel, Error> {
    connection.create_channel().await.map_err(|error| failed("opening a channel", &error))
}

/// Waits for an answer as long as the broker may take; while it is blocked it answers nobody, and that is no fault.
pub(super) async fn answer<T>(connection: &Connection, what: &str, reply: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let mut reply = std::pin::pin!(reply);
    loop {
        match tokio::time::timeout(ANSWER_TIMEOUT, &mut reply).await {
            Ok(answered) => return answered,
            Err(_) if connection.status().blocked() => {}
            Err(_) => return Err(Error::Lost(format!("{what}: the broker did not answer within {} s", ANSWER_TIMEOUT.as_secs()))),
        }
    }
}

/// Closes a channel and waits until the broker has done so: what was unacked is back in its queue, in order.
pub(super) async fn close(channel: &Channel) -> Result<(), Error> {
    channel.close(DONE.0, DONE.1.into()).await.map_err(|error| failed("closing a channel", &error))
}

/// Sends the closing of a channel without waiting, from where nothing can be awaited. lapin marks the channel's consumers in the
/// same breath, and so sends no `basic.cancel` when they are dropped: a cancelled consumer's unacked messages would lose their
/// place in the queue. The result is of no use: the channel is closing, or was closed.
pub(super) fn begin_close(channel: &Channel) {
    drop(channel.close(DONE.0, DONE.1.into()).now_or_never());
}

/// Sends the closing of a connection without waiting.
pub(super) fn begin_close_connection(connection: &Connection) {
    drop(connection.close(DONE.0, DONE.1.into()).now_or_never());
}
