//! Giving a pipeline up.

use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};

use super::errors::failed;
use super::topology::short;
use super::{RabbitBroker, dial, link};
use crate::broker::Error;
use crate::change::Partition;

impl RabbitBroker {
    /// Removes the pipeline's exchange and queues with everything in them. For a pipeline that nobody runs any more; what is not
    /// there is removed already.
    pub async fn remove(&self) -> Result<(), Error> {
        let connection = dial::connect(&self.settings, "removal").await?;
        let partitions = Partition::all(self.settings.partitions).map(|partition| self.names.partition(partition));
        let others = [&self.names.control, &self.names.position, &self.names.dead].map(String::clone);
        let removing = async {
            let channel = link::channel(&connection).await?;
            for name in partitions.chain(others) {
                channel
                    .queue_delete(short(&name), QueueDeleteOptions::default())
                    .await
                    .map_err(|error| failed(&format!("deleting the queue {name}"), &error))?;
            }
            let name = &self.names.exchange;
            channel
                .exchange_delete(short(name), ExchangeDeleteOptions::default())
                .await
                .map_err(|error| failed(&format!("deleting the exchange {name}"), &error))
        };
        link::answer(&connection, "removing exchange and queues", removing).await
    }
}
