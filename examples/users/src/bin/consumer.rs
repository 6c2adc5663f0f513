//! The guide's second program: keeps Redis in step with the users, and prints each change and the key it wrote.

use std::sync::Arc;

use clap::Parser;
use rowcast::broker::rabbitmq::{QueueType, RabbitBroker, RabbitSettings};
use rowcast::cache::redis::{RedisCache, RedisSettings};
use rowcast::checkpoint::Value;
use rowcast::consumer::{Applied, Consumer, Settings};
use rowcast::stop::Stop;
use users::{PARTITIONS, PIPELINE};

/// Brings the changes of users from RabbitMQ to Redis, until Ctrl-C. Any number of consumers share the work.
#[derive(Parser)]
#[command(name = "consumer")]
struct Arguments {
    /// RabbitMQ.
    #[arg(long, env = "BROKER_URL", hide_env_values = true, value_name = "URL", default_value = "amqp://127.0.0.1/%2f")]
    broker: String,
    /// Redis.
    #[arg(long, env = "CACHE_URL", hide_env_values = true, value_name = "URL", default_value = "redis://127.0.0.1/0")]
    cache: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    users::log_to_stderr();
    let broker = RabbitBroker::new(RabbitSettings::new(&arguments.broker, PIPELINE, PARTITIONS, QueueType::Quorum)?);
    let cache = RedisCache::new(RedisSettings::new(&arguments.cache, PIPELINE)?);
    let consumer = Consumer::new(Settings::new(PIPELINE, PARTITIONS), broker, cache, Arc::default()).observe(show);
    consumer.run(Stop::when(tokio::signal::ctrl_c())).await?;
    Ok(())
}

/// One line a change, printed once it stands in Redis.
fn show(applied: &Applied<'_>) {
    for write in applied.writes {
        let ms = (applied.applied_us - write.committed_us) / 1_000;
        match write.value {
            Value::Row(row, ..) => println!("{}\t{}\tis now {row}\t{ms} ms", write.op, write.key),
            Value::Gone => println!("{}\t{}\tis gone\t{ms} ms", write.op, write.key),
        }
    }
}
