//! The publisher's connection: the lock, the record, the stream of batches and what the broker says of them.
//!
//! lapin writes and reads on a thread of its own. Handing a message over puts its frames into lapin's queue at the first poll;
//! what the broker answers is collected by [`RabbitPublishing::event`].

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, Stream, StreamExt, poll};
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Confirmation, Connection, Consumer};

use super::errors::failed;
use super::link::{self, answer};
use super::settings::RabbitSettings;
use super::topology::{Declaring, Names, look, short};
use super::{content, dial};
use crate::broker::{Address, Error, Event, Message, Publishing, Ticket};
use crate::change::Partition;

/// How often it is looked whether the record is back in its queue.
const RECORD_LOOK: Duration = Duration::from_millis(5);

/// The default exchange routes by the queue's name.
const DEFAULT_EXCHANGE: &str = "";

/// What became of one message.
type Outcome = (Ticket, lapin::Result<Confirmation>);

/// How often a look for the queues asks whether the connection was blocked meanwhile.
const BLOCKED_LOOK: std::time::Duration = std::time::Duration::from_millis(100);

/// The connection that holds the pipeline's exclusive queue.
pub struct RabbitPublishing {
    settings: RabbitSettings,
    names: Names,
    /// Holds the lock.
    connection: Connection,
    /// Where everything is published, and where askings arrive: if it ends, its consumer says so at once.
    channel: Channel,
    /// Where the queues are looked for: a missing one closes it.
    looking: Channel,
    /// Requests, each acked when it is settled.
    control: Consumer,
    /// What lapin has to tell of the connection. Listened to from its beginning, so that no alarm is missed.
    signs: Pin<Box<dyn Stream<Item = lapin::Event> + Send>>,
    /// One for each message without an answer.
    unconfirmed: FuturesUnordered<BoxFuture<'static, Outcome>>,
    /// Confirmed, not yet told.
    confirmed: VecDeque<Ticket>,
    /// The number of the newest message.
    last: Ticket,
    /// Why the connection is over. Once set nothing else is ever said.
    over: Option<String>,
}

impl RabbitPublishing {
    /// Connects, takes the lock, and only then touches anything else.
    pub(super) async fn connect(settings: RabbitSettings, names: Names) -> Result<RabbitPublishing, Error> {
        let connection = dial::connect(&settings, "publisher").await?;
        let signs = Box::pin(connection.events_listener());
        let opening = open(&connection, &settings, &names);
        let (channel, looking, control) = answer(&connection, "preparing to publish", opening).await?;
        Ok(RabbitPublishing {
            settings,
            names,
            connection,
            channel,
            looking,
            control,
            signs,
            unconfirmed: FuturesUnordered::new(),
            confirmed: VecDeque::new(),
            last: Ticket(0),
            over: None,
        })
    }

    fn check(&self) -> Result<(), Error> {
        self.over.as_ref().map_or(Ok(()), |why| Err(Error::Lost(why.clone())))
    }

    /// Ends the connection: nothing that is unconfirmed may be taken as delivered any more.
    fn end(&mut self, error: Error) -> Error {
        self.unconfirmed = FuturesUnordered::new();
        link::begin_close_connection(&self.connection);
        self.over = Some(error.to_string());
        error
    }

    fn lost(&mut self, why: String) -> Error {
        self.end(Error::Lost(why))
    }

    /// Takes one outcome and all that have come with it. A returned message is acked as well, and lapin may pin it on another
    /// message's confirm of the same moment: so they are judged together, and one return or nack fails them all.
    fn settle(&mut self, first: Outcome) -> Result<(), Error> {
        let mut next = Some(first);
        let mut good = Vec::new();
        while let Some((ticket, outcome)) = next {
            match judge(outcome) {
                Ok(()) => good.push(ticket),
                Err(why) => return Err(self.lost(why)),
            }
            next = self.unconfirmed.next().now_or_never().flatten();
        }
        self.confirmed.extend(good);
        Ok(())
    }
}

impl Drop for RabbitPublishing {
    fn drop(&mut self) {
        // With the connection the lock goes.
        link::begin_close_connection(&self.connection);
    }
}

/// Reads the record and puts it back.
async fn read_record(channel: &Channel, name: &str) -> Result<Option<Vec<u8>>, Error> {
    let what = format!("reading the queue {name}");
    let got = channel.basic_get(short(name), BasicGetOptions { no_ack: false }).await.map_err(|error| failed(&what, &error))?;
    let Some(message) = got else { return Ok(None) };
    let back = BasicNackOptions { multiple: false, requeue: true };
    channel.basic_nack(message.delivery_tag, back).await.map_err(|error| failed(&what, &error))?;
    // A record that came back after a newer one had been published would displace it.
    while look(channel, name).await.map_err(|error| failed(&what, &error))?.message_count() == 0 {
        tokio::time::sleep(RECORD_LOOK).await;
    }
    let message = message.delivery;
    Ok(Some(content::decode(&message.properties, message.data)))
}

async fn look_for_each(declaring: &Declaring<'_>) -> Result<Vec<Partition>, Error> {
    let mut unconsumed = Vec::new();
    for partition in Partition::all(declaring.settings.partitions) {
        let name = declaring.names.partition(partition);
        let queue = look(declaring.channel, &name).await.map_err(|error| failed(&format!("looking for the queue {name}"), &error))?;
        unconsumed.extend((queue.consumer_count() == 0).then_some(partition));
        // AMQP cannot ask for a binding. If it was gone, what went by shows as a gap in the next batch.
        declaring.bind(partition).await?;
    }
    Ok(unconsumed)
}

/// Takes the lock, makes what is missing, and begins to listen for askings.
async fn open(connection: &Connection, settings: &RabbitSettings, names: &Names) -> Result<(Channel, Channel, Consumer), Error> {
    let channel = link::channel(connection).await?;
    let declaring = Declaring { channel: &channel, settings, names };
    declaring.lock().await?;
    declaring.exchange().await?;
    for partition in Partition::all(settings.partitions) {
        declaring.partition(partition).await?;
    }
    declaring.control().await?;
    declaring.position().await?;
    declaring.dead().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(|error| failed("asking for confirms", &error))?;
    let control = channel
        .basic_consume(short(&names.control), "".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await
        .map_err(|error| failed(&format!("consuming the queue {}", names.control), &error))?;
    let looking = link::channel(connection).await?;
    Ok((channel, looking, control))
}

/// Whether the broker has taken responsibility; else why not.
pub(super) fn judge(outcome: lapin::Result<Confirmation>) -> Result<(), String> {
    match outcome {
        Ok(Confirmation::Ack(None)) => Ok(()),
        Ok(Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned))) => Err(describe_return(&returned)),
        Ok(Confirmation::Nack(None)) => Err("the broker refused a message (nack)".to_owned()),
        // Only without confirm.select, which stands right behind the channel's opening.
        Ok(Confirmation::NotRequested) => Err("the broker was not asked for confirms".to_owned()),
        Err(error) => Err(format!("the connection to RabbitMQ ended with messages unconfirmed: {error}")),
    }
}

fn describe_return(returned: &BasicReturnMessage) -> String {
    format!(
        "the broker returned a message to {:?} with key {:?}: {} {}",
        returned.exchange.as_str(),
        returned.routing_key.as_str(),
        returned.reply_code,
        returned.reply_text
    )
}

/// Publishes one message and waits for its confirm. The frames are in lapin's queue after the first poll.
pub(super) async fn publish_confirmed(
    channel: Channel,
    exchange: String,
    key: String,
    kind: &'static str,
    body: Vec<u8>,
) -> lapin::Result<Confirmation> {
    let (properties, body) = content::encode(kind, body).map_err(lapin::Error::from)?;
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let confirm = channel.basic_publish(short(&exchange), short(&key), options, &body, properties).await?;
    drop(body);
    confirm.await
}

impl Publishing for RabbitPublishing {
    async fn record(&mut self) -> Result<Option<Vec<u8>>, Error> {
        self.check()?;
        assert_eq!(self.last, Ticket(0), "the record is read before anything is published");
        let reading = read_record(&self.channel, &self.names.position);
        let read = answer(&self.connection, "reading the position record", reading).await;
        read.map_err(|error| self.end(error))
    }

    async fn publish(&mut self, message: Message) -> Result<Ticket, Error> {
        self.check()?;
        let (exchange, key) = match message.to {
            Address::Partition(partition) => (self.names.exchange.clone(), partition.to_string()),
            Address::Record => (DEFAULT_EXCHANGE.to_owned(), self.names.position.clone()),
            Address::Dead => (DEFAULT_EXCHANGE.to_owned(), self.names.dead.clone()),
        };
        let ticket = Ticket(self.last.0 + 1);
        let outcome =
            publish_confirmed(self.channel.clone(), exchange, key, message.kind, message.body).map(move |outcome| (ticket, outcome));
        let mut outcome = outcome.boxed();
        // Polled here so that messages leave in the order in which they were handed over.
        if let std::task::Poll::Ready(settled) = poll!(&mut outcome) {
            // Nothing is confirmed before it is written: this is an error.
            self.settle(settled)?;
        } else {
            self.unconfirmed.push(outcome);
        }
        self.last = ticket;
        Ok(ticket)
    }

    async fn event(&mut self) -> Result<Event, Error> {
        loop {
            self.check()?;
            if let Some(ticket) = self.confirmed.pop_front() {
                return Ok(Event::Confirmed(ticket));
            }
            tokio::select! {
                Some(outcome) = self.unconfirmed.next(), if !self.unconfirmed.is_empty() => self.settle(outcome)?,
                sign = self.signs.next() => match sign {
                    Some(lapin::Event::ConnectionBlocked(reason)) => return Ok(Event::Blocked(reason)),
                    Some(lapin::Event::ConnectionUnblocked) => return Ok(Event::Unblocked),
                    Some(lapin::Event::Error(error)) => return Err(self.lost(format!("the connection to RabbitMQ ended: {error}"))),
                    Some(_) => {}
                    None => return Err(self.lost("the connection to RabbitMQ ended".to_owned())),
                },
                asking = self.control.next() => match asking {
                    Some(Ok(delivery)) => {
                        let body = content::decode(&delivery.properties, delivery.data);
                        return Ok(Event::Control { body, number: delivery.delivery_tag });
                    }
                    Some(Err(error)) => return Err(self.lost(format!("the connection to RabbitMQ ended: {error}"))),
                    None => return Err(self.lost(format!("the channel was closed, or the queue {} is gone", self.names.control))),
                },
            }
        }
    }

    async fn settle(&mut self, number: u64) -> Result<(), Error> {
        self.check()?;
        // The first poll puts the frame into lapin's queue; while the connection is blocked nothing is written.
        match self.channel.basic_ack(number, BasicAckOptions::default()).now_or_never() {
            None | Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(self.lost(format!("acking a request failed: {error}"))),
        }
    }

    async fn look_for_queues(&mut self) -> Result<Vec<Partition>, Error> {
        self.check()?;
        // A blocked connection carries no question. Nothing can be published either, so nothing can go astray meanwhile.
        if self.connection.status().blocked() {
            return Ok(Vec::new());
        }
        let declaring = Declaring { channel: &self.looking, settings: &self.settings, names: &self.names };
        let mut looking = Box::pin(answer(&self.connection, "looking for the queues", look_for_each(&declaring)));
        // The first message of an idle publisher may be what blocks the connection, and then the question behind it is not
        // answered before the alarm ends. The caller must hear of the alarm meanwhile; a late answer on this channel is nobody's.
        let found = loop {
            match tokio::time::timeout(BLOCKED_LOOK, &mut looking).await {
                Ok(found) => break found,
                Err(_) if self.connection.status().blocked() => return Ok(Vec::new()),
                Err(_) => {}
            }
        };
        drop(looking);
        found.map_err(|error| self.end(error))
    }
}
