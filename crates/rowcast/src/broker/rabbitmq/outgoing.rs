//! What is sent by those who do not publish batches: requests to the publisher, and dead letters.

use std::sync::{Arc, Weak};

use futures_util::FutureExt;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::{Channel, Connection};
use tokio::sync::Mutex;

use super::errors::failed;
use super::link::{self, answer};
use super::publishing::{judge, publish_confirmed};
use super::settings::RabbitSettings;
use super::topology::{Declaring, Names, short};
use super::{content, dial};
use crate::broker::Error;

/// The default exchange routes by the queue's name.
const DEFAULT_EXCHANGE: &str = "";

/// The AMQP property `type` of a request.
const REQUEST_TYPE: &str = "rowcast.request";

/// The AMQP property `type` of a dead letter.
const DEAD_TYPE: &str = "rowcast.dead_letter";

/// Opens [`Outgoing`]s, all on one connection for as long as somebody uses it.
#[derive(Clone)]
pub(super) struct Sender {
    settings: Arc<RabbitSettings>,
    names: Arc<Names>,
    connection: Arc<Mutex<Weak<Connection>>>,
}

impl Sender {
    pub fn new(settings: Arc<RabbitSettings>, names: Arc<Names>) -> Sender {
        Sender { settings, names, connection: Arc::default() }
    }

    /// Connects if nobody has, and makes the queues that are sent to.
    pub async fn open(&self) -> Result<Outgoing, Error> {
        let connection = self.connection().await?;
        let opening = async {
            let letters = link::channel(&connection).await?;
            let declaring = Declaring { channel: &letters, settings: &self.settings, names: &self.names };
            declaring.control().await?;
            declaring.dead().await?;
            letters.confirm_select(ConfirmSelectOptions::default()).await.map_err(|error| failed("asking for confirms", &error))?;
            let requests = link::channel(&connection).await?;
            Ok((letters, requests))
        };
        let (letters, requests) = answer(&connection, "preparing to send", opening).await?;
        Ok(Outgoing { names: self.names.clone(), connection, letters, requests })
    }

    async fn connection(&self) -> Result<Arc<Connection>, Error> {
        let mut shared = self.connection.lock().await;
        if let Some(connection) = shared.upgrade().filter(|connection| connection.status().connected()) {
            return Ok(connection);
        }
        let connection = Arc::new(dial::connect(&self.settings, "requests").await?);
        *shared = Arc::downgrade(&connection);
        Ok(connection)
    }
}

/// Sends requests and dead letters.
pub(super) struct Outgoing {
    names: Arc<Names>,
    connection: Arc<Connection>,
    /// With confirms.
    letters: Channel,
    /// Without: nobody waits for a request's confirm, and lapin would keep each one.
    requests: Channel,
}

impl Outgoing {
    /// Whether it can still be used.
    pub fn alive(&self) -> bool {
        self.letters.status().connected() && self.requests.status().connected()
    }

    /// Sends a request without waiting. Dropped while the broker is blocked: whoever asks, asks again.
    pub fn request(&self, body: Vec<u8>) -> Result<(), Error> {
        if self.connection.status().blocked() {
            tracing::debug!("a request was not sent: the broker is blocked");
            return Ok(());
        }
        let what = "sending a request";
        let (properties, body) = content::encode(REQUEST_TYPE, body).map_err(|error| Error::Fatal(format!("{what} failed: {error}")))?;
        let options = BasicPublishOptions::default();
        // The first poll puts the frames into lapin's queue.
        match self.requests.basic_publish(short(DEFAULT_EXCHANGE), short(&self.names.control), options, &body, properties).now_or_never() {
            None | Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(failed(what, &error)),
        }
    }

    /// Sends a request and waits until it is stored.
    pub async fn request_confirmed(&self, body: Vec<u8>) -> Result<(), Error> {
        self.send(&self.names.control, REQUEST_TYPE, body).await
    }

    /// Sets a message aside and waits until it is stored.
    pub async fn dead_letter(&self, body: Vec<u8>) -> Result<(), Error> {
        self.send(&self.names.dead, DEAD_TYPE, body).await
    }

    async fn send(&self, queue: &str, kind: &'static str, body: Vec<u8>) -> Result<(), Error> {
        let sending = async {
            let outcome = publish_confirmed(self.letters.clone(), DEFAULT_EXCHANGE.to_owned(), queue.to_owned(), kind, body).await;
            judge(outcome).map_err(Error::Lost)
        };
        answer(&self.connection, &format!("sending to the queue {queue}"), sending).await
    }
}
