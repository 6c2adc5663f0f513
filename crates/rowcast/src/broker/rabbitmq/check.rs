//! What would stop or harm the pipeline on this broker.
//!
//! What exists already is declared again, which changes nothing and is refused where it was made otherwise; what is permitted
//! is tried on a queue that ends with the connection.

use std::time::Duration;

use lapin::options::{BasicGetOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ExchangeKind};
use ulid::Ulid;

use super::errors::{REMEDIES, failed};
use super::greeting::greeting;
use super::publishing::{judge, publish_confirmed};
use super::topology::{Declaring, Purpose, look, short};
use super::{NOT_FOUND, RESOURCE_LOCKED, RabbitBroker, dial, link, reply_code};
use crate::broker::Error;
use crate::change::Partition;
use crate::finding::{Finding, Grade};

/// The oldest version on which everything was tried.
const VERSION_LEAST: (u32, u32) = (3, 10);

/// How long a confirm may take before it is asked whether there is an alarm.
const ALARM_LOOK: Duration = Duration::from_secs(3);

impl RabbitBroker {
    /// Looks at the broker as publisher and consumers would use it, and leaves everything as it was.
    pub async fn check(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        if let Err(error) = self.check_into(&mut found).await {
            found.push(finding(error));
        }
        found
    }

    async fn check_into(&self, found: &mut Vec<Finding>) -> Result<(), Error> {
        if let Some((product, version)) = greeting(&self.settings).await? {
            found.extend(judge_version(&product, &version));
        }
        let connection = dial::connect(&self.settings, "check").await?;
        let checked = self.check_connected(&connection, found).await;
        link::begin_close_connection(&connection);
        checked
    }

    async fn check_connected(&self, connection: &Connection, found: &mut Vec<Finding>) -> Result<(), Error> {
        let exchange = match link::answer(connection, "looking at the exchange", self.check_exchange(connection)).await {
            Ok(there) => there,
            Err(error) => {
                found.push(different(error)?);
                true
            }
        };
        let mut different_queues = Vec::new();
        for (name, purpose) in self.queues() {
            match link::answer(connection, "looking at the queues", self.check_queue(connection, &name, purpose)).await {
                Ok(()) => {}
                Err(error) => different_queues.push((name, different(error)?)),
            }
        }
        found.extend(one_for_all(different_queues));
        found.extend(link::answer(connection, "looking for a publisher", self.check_publisher(connection)).await?);
        found.extend(self.check_permissions(connection, exchange).await?);
        Ok(())
    }

    fn queues(&self) -> Vec<(String, Purpose)> {
        let partitions = Partition::all(self.settings.partitions).map(|partition| (self.names.partition(partition), Purpose::Batches));
        let names = &self.names;
        let others = [(&names.control, Purpose::Control), (&names.position, Purpose::Position), (&names.dead, Purpose::Dead)];
        partitions.chain(others.map(|(name, purpose)| (name.clone(), purpose))).collect()
    }

    /// Whether the exchange exists; an error where it is of another kind.
    async fn check_exchange(&self, connection: &Connection) -> Result<bool, Error> {
        let name = &self.names.exchange;
        let channel = link::channel(connection).await?;
        let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
        match channel.exchange_declare(short(name), ExchangeKind::Direct, options, FieldTable::default()).await {
            Ok(()) => {
                self.declaring(&channel).exchange().await?;
                Ok(true)
            }
            Err(error) if reply_code(&error) == Some(NOT_FOUND) => Ok(false),
            Err(error) => Err(failed(&format!("looking at the exchange {name}"), &error)),
        }
    }

    /// An error where the queue exists with other arguments.
    async fn check_queue(&self, connection: &Connection, name: &str, purpose: Purpose) -> Result<(), Error> {
        let channel = link::channel(connection).await?;
        match look(&channel, name).await {
            Ok(_) => self.declaring(&channel).queue(name, purpose).await,
            Err(error) if reply_code(&error) == Some(NOT_FOUND) => Ok(()),
            Err(error) => Err(failed(&format!("looking at the queue {name}"), &error)),
        }
    }

    async fn check_publisher(&self, connection: &Connection) -> Result<Option<Finding>, Error> {
        let channel = link::channel(connection).await?;
        let name = &self.names.publisher;
        match look(&channel, name).await {
            Err(error) if reply_code(&error) == Some(RESOURCE_LOCKED) => Ok(Some(Finding::new(
                Grade::Notes,
                format!("a publisher of the pipeline is at work (it holds {name}); another one stands by until that ends"),
            ))),
            Err(error) if reply_code(&error) == Some(NOT_FOUND) => Ok(None),
            Ok(_) => Ok(None),
            Err(error) => Err(failed(&format!("looking at the queue {name}"), &error)),
        }
    }

    /// Does everything that publisher and consumers do, on a queue of its own.
    async fn check_permissions(&self, connection: &Connection, exchange: bool) -> Result<Option<Finding>, Error> {
        let channel = link::channel(connection).await?;
        let name = format!("{}.check-{}", self.names.exchange, Ulid::generate());
        let preparing = async {
            let options = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
            let what = format!("declaring the queue {name}");
            channel.queue_declare(short(&name), options, super::topology::classic()).await.map_err(|error| failed(&what, &error))?;
            if exchange {
                let what = format!("binding a queue to the exchange {}", self.names.exchange);
                let (queue, exchange) = (short(&name), short(&self.names.exchange));
                channel
                    .queue_bind(queue, exchange, short(&name), QueueBindOptions::default(), FieldTable::default())
                    .await
                    .map_err(|error| failed(&what, &error))?;
            }
            channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(|error| failed("asking for confirms", &error))
        };
        link::answer(connection, "preparing to try what is permitted", preparing).await?;
        let publish = async |exchange: &str| {
            publish_confirmed(channel.clone(), exchange.to_owned(), name.clone(), "rowcast.check", b"{}".to_vec()).await
        };
        // The default exchange takes what consumers send, the pipeline's takes batches.
        for exchange in [Some(""), exchange.then_some(self.names.exchange.as_str())].into_iter().flatten() {
            match tokio::time::timeout(ALARM_LOOK, publish(exchange)).await {
                Ok(Err(error)) => return Err(failed(&format!("publishing to the exchange {exchange:?}"), &error)),
                Ok(outcome) => judge(outcome).map_err(Error::Lost)?,
                Err(_) => return Ok(Some(alarm(connection, &self.settings.address()))),
            }
        }
        let reading = async {
            let got = channel.basic_get(short(&name), BasicGetOptions { no_ack: true }).await;
            got.map(drop).map_err(|error| failed(&format!("reading the queue {name}"), &error))
        };
        link::answer(connection, "reading a queue", reading).await?;
        Ok(None)
    }

    fn declaring<'a>(&'a self, channel: &'a Channel) -> Declaring<'a> {
        Declaring { channel, settings: &self.settings, names: &self.names }
    }
}

fn judge_version(product: &str, version: &str) -> Option<Finding> {
    if product != "RabbitMQ" {
        let message = format!("the broker is {product:?} {version}; rowcast was only tried with RabbitMQ");
        return Some(Finding::new(Grade::Harms, message).mend("use RabbitMQ 3.10 or later"));
    }
    let mut numbers = version.split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    let found = (numbers.next()?, numbers.next()?);
    if found >= VERSION_LEAST {
        return None;
    }
    let message = format!("the broker is RabbitMQ {version}, and {}.{} or later is needed", VERSION_LEAST.0, VERSION_LEAST.1);
    Some(Finding::new(Grade::Stops, message).mend("upgrade RabbitMQ"))
}

/// An error with what mends it apart.
fn finding(error: Error) -> Finding {
    let text = error.to_string();
    if let Some((message, remedy)) = REMEDIES.iter().find_map(|remedy| Some((text.strip_suffix(remedy)?, remedy))) {
        return Finding::new(Grade::Stops, message.trim_end_matches([' ', '.'])).mend(*remedy);
    }
    match error {
        Error::Lost(_) if text.starts_with("connecting") => {
            Finding::new(Grade::Stops, text).mend("start the broker, or correct the `url` in [broker]")
        }
        _ => Finding::of_sentence(Grade::Stops, &text),
    }
}

/// Something that exists was made otherwise, or may not be touched: a finding. All else is an error.
fn different(error: Error) -> Result<Finding, Error> {
    match error {
        Error::Fatal(_) => Ok(finding(error)),
        other => Err(other),
    }
}

/// The first of several that are alike, with the names of the others.
fn one_for_all(found: Vec<(String, Finding)>) -> Vec<Finding> {
    let mut kept: Vec<(Finding, Vec<String>)> = Vec::new();
    for (name, finding) in found {
        match kept.iter_mut().find(|(other, _)| other.remedy == finding.remedy) {
            Some((_, names)) => names.push(name),
            None => kept.push((finding, Vec::new())),
        }
    }
    let named = |(finding, names): (Finding, Vec<String>)| match names.is_empty() {
        true => finding,
        false => Finding { message: format!("{} (and the same of {})", finding.message, names.join(", ")), ..finding },
    };
    kept.into_iter().map(named).collect()
}

fn alarm(connection: &Connection, address: &str) -> Finding {
    if connection.status().blocked() {
        let message = format!("RabbitMQ at {address} takes no messages: it is short of memory or disk");
        return Finding::new(Grade::Harms, message).mend("make room: `rabbitmq-diagnostics alarms` says of what");
    }
    let message = format!("RabbitMQ at {address} has not confirmed a message within {} s", ALARM_LOOK.as_secs());
    Finding::new(Grade::Harms, message).mend("look into its log, and what `rabbitmq-diagnostics status` says")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_broker_and_a_stranger_are_named() {
        for version in ["3.10.0", "3.13.7", "4.1.0", "4.2.0-rc.1", "unheard of"] {
            assert_eq!(judge_version("RabbitMQ", version), None, "{version}");
        }
        assert_eq!(judge_version("RabbitMQ", "3.9.29").unwrap().grade, Grade::Stops);
        assert_eq!(judge_version("LavinMQ", "2.0.0").unwrap().grade, Grade::Harms);
    }
}
