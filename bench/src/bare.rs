//! What the stages and the servers do alone with the same changes: the limits that the pipeline is measured by.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer, PublisherConfirm};
use rowcast::batch::Batch;
use rowcast::broker::memory::MemoryBroker;
use rowcast::change::Partition;
use rowcast::meter::Meter;
use rowcast::publisher::{self, Publisher};
use rowcast::source::{Portion, Source};
use rowcast_testkit::rabbitmq::RabbitServer;
use rowcast_testkit::redis::RedisServer;
use rowcast_testkit::wait::until;

use crate::Plan;
use crate::child::start_half;
use crate::database::{self, Database, PARTITIONS, PIPELINE};
use crate::report::{Bare, Latency};
use crate::usage::{group_cpu_s, now_us};

/// How long a measurement may take.
const DEADLINE: Duration = Duration::from_secs(300);

/// Messages that may be unconfirmed, as in the publisher.
const WINDOW: usize = 256;

/// Messages that a consumer may hold.
const PREFETCH: u16 = 50;

/// A batch of one small row, more or less.
const MESSAGE_BYTES: usize = 512;

/// Rows in one MSET.
const MSET_ROWS: usize = 1_000;

/// A message's partition and text.
type Text = (Partition, Vec<u8>);

/// Measures each alone, one after the other, on a table that nothing else reads.
pub async fn measure(database: &Database, plan: &Plan, rabbit: &RabbitServer, redis: &RedisServer) -> anyhow::Result<Bare> {
    let changes = f64::from(plan.rows);
    let source_s = read_source(database, plan.rows).await?;
    let (texts, publisher_s) = publish_to_memory(database, plan.rows).await?;
    let before = group_cpu_s(rabbit.group()?)?;
    let rabbitmq_s = through_rabbitmq(&rabbit.url(), &texts).await?;
    let rabbitmq_cpu_s = group_cpu_s(rabbit.group()?)? - before;
    let before = group_cpu_s(redis.id()?)?;
    let rows = rows_of(&texts)?;
    let mset_s = into_redis(&redis.url(), rows.chunks(MSET_ROWS).map(mset))?;
    let redis_cpu_s = group_cpu_s(redis.id()?)? - before;
    let set_s = into_redis(&redis.url(), rows.chunks(MSET_ROWS).map(sets))?;
    let rabbitmq_lag = beside_a_writer(database, plan, &rabbit.url()).await?;
    Ok(Bare {
        source_changes_per_s: changes / source_s,
        publisher_changes_per_s: changes / publisher_s,
        rabbitmq_changes_per_s: changes / rabbitmq_s,
        rabbitmq_cpu_s_per_100k: rabbitmq_cpu_s * 100_000.0 / changes,
        mset_changes_per_s: changes / mset_s,
        set_changes_per_s: changes / set_s,
        receive_changes_per_s: None,
        copy_rows_per_s: None,
        redis_cpu_s_per_100k: redis_cpu_s * 100_000.0 / changes,
        rabbitmq_lag,
    })
}

/// Seconds that rowcast's source takes to read a backlog.
async fn read_source(database: &Database, rows: u32) -> anyhow::Result<f64> {
    let mut source = database::source(&database.url())?;
    // Without a record a new history begins here, so the backlog is written afterwards.
    source.begin(None).await?;
    database.write_backlog(rows, rows)?;
    let begun = Instant::now();
    let mut found = 0;
    while found < rows as usize {
        if let Portion::Changes { changes, .. } = source.next().await? {
            found += changes.len();
        }
    }
    let took = begun.elapsed().as_secs_f64();
    source.release().await?;
    Ok(took)
}

/// The messages that the publisher makes of a backlog, and the seconds that it takes.
async fn publish_to_memory(database: &Database, rows: u32) -> anyhow::Result<(Vec<Text>, f64)> {
    let broker = MemoryBroker::new(PARTITIONS);
    let take = |partition| broker.with_queue(partition, std::mem::take);
    // The first publisher leaves a record, so that the second one continues.
    let last = Partition { number: PARTITIONS, of: PARTITIONS };
    publish_until(database, &broker, |_| !broker.with_queue(last, |queue| queue.is_empty())).await?;
    Partition::all(PARTITIONS).for_each(|partition| drop(take(partition)));
    database.write_backlog(rows, rows)?;
    let took = publish_until(database, &broker, |meter| Meter::read(&meter.published) >= u64::from(rows)).await?;
    let mut queues: Vec<_> =
        Partition::all(PARTITIONS).map(|partition| (partition, broker.with_queue(partition, std::mem::take))).collect();
    // Round and round, as they were sent, more or less.
    let mut texts = Vec::new();
    while queues.iter().any(|(_, queue)| !queue.is_empty()) {
        texts.extend(queues.iter_mut().filter_map(|(partition, queue)| Some((*partition, queue.pop_front()?))));
    }
    Ok((texts, took.as_secs_f64()))
}

/// How long a publisher takes until something is so.
async fn publish_until(database: &Database, broker: &MemoryBroker, so: impl Fn(&Meter) -> bool) -> anyhow::Result<Duration> {
    let meter = Arc::new(Meter::default());
    let source = database::source(&database.url())?;
    let publisher = Publisher::new(publisher::Settings::new(PIPELINE, PARTITIONS), source, broker.clone(), meter.clone());
    let begun = Instant::now();
    let (stopper, thread) = start_half("publisher", move |stop| async move { Ok(publisher.run(stop).await?) })?;
    let took = until("the publisher", DEADLINE, || async { so(&meter).then(|| begun.elapsed()) }).await?;
    stopper.stop();
    thread.join().map_err(|_| anyhow::anyhow!("the publisher panicked"))??;
    Ok(took)
}

/// Seconds from the first publish to the last ack and confirm.
async fn through_rabbitmq(url: &str, texts: &[Text]) -> anyhow::Result<f64> {
    let bodies: Vec<(String, Vec<u8>)> = texts
        .iter()
        .map(|(partition, text)| Ok((queue_of("backlog", *partition), zstd::bulk::compress(text, 1)?)))
        .collect::<anyhow::Result<_>>()?;
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let consuming = Connection::connect(url, ConnectionProperties::default()).await?;
    let mut consumers = Vec::new();
    for partition in Partition::all(PARTITIONS) {
        let queue = queue_of("backlog", partition);
        let expected = bodies.iter().filter(|(name, _)| *name == queue).count();
        let (channel, mut consumer) = consume(&consuming, &queue).await?;
        consumers.push(tokio::spawn(async move {
            for _ in 0..expected {
                let delivery = consumer.next().await.context("the consumer ended")??;
                channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await?;
            }
            // An answer to this is behind all acks.
            channel.close(200, "done".into()).await?;
            anyhow::Ok(())
        }));
    }
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let begun = Instant::now();
    let mut unconfirmed = FuturesUnordered::new();
    for (queue, body) in &bodies {
        unconfirmed.push(publish(&channel, queue, body).await?);
        while unconfirmed.len() >= WINDOW {
            confirmed(unconfirmed.next().await)?;
        }
    }
    while !unconfirmed.is_empty() {
        confirmed(unconfirmed.next().await)?;
    }
    for consumer in consumers {
        tokio::time::timeout(DEADLINE, consumer).await???;
    }
    Ok(begun.elapsed().as_secs_f64())
}

fn queue_of(kind: &str, partition: Partition) -> String {
    format!("bare.{kind}.{partition}")
}

/// Makes a queue of the kind that rowcast makes, and consumes from it.
async fn consume(connection: &Connection, queue: &str) -> anyhow::Result<(Channel, Consumer)> {
    let channel = connection.create_channel().await?;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(queue.into(), options, arguments).await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let consumer = channel.basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default()).await?;
    Ok((channel, consumer))
}

async fn publish(channel: &Channel, queue: &str, body: &[u8]) -> lapin::Result<PublisherConfirm> {
    let properties = BasicProperties::default().with_delivery_mode(2);
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    channel.basic_publish("".into(), queue.into(), options, body, properties).await
}

/// From publishing to delivery: RabbitMQ alone with as many messages a second as commits are made beside it, on the same disk.
async fn beside_a_writer(database: &Database, plan: &Plan, url: &str) -> anyhow::Result<Latency> {
    let Plan { rows, commits_per_second, seconds, .. } = *plan;
    let count = commits_per_second * seconds;
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let consuming = Connection::connect(url, ConnectionProperties::default()).await?;
    let mut consumers = Vec::new();
    for partition in Partition::all(PARTITIONS) {
        let (channel, mut consumer) = consume(&consuming, &queue_of("commits", partition)).await?;
        let expected = (0..count).filter(|index| index % u32::from(PARTITIONS) + 1 == u32::from(partition.number)).count();
        consumers.push(tokio::spawn(async move {
            let mut lags = Vec::new();
            while lags.len() < expected {
                let delivery = consumer.next().await.context("the consumer ended")??;
                let sent = delivery.data.first_chunk::<8>().context("a message that nobody published")?;
                lags.push(now_us() - i64::from_le_bytes(*sent));
                channel.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await?;
            }
            anyhow::Ok(lags)
        }));
    }
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let publishing = tokio::spawn(publish_at_a_rate(channel, commits_per_second, count));
    // Nobody looks for the samples.
    let (sender, _samples) = sync_channel(1);
    tokio::task::block_in_place(|| database.commit_singly(rows, commits_per_second, count, &sender))?;
    tokio::time::timeout(DEADLINE, publishing).await???;
    let mut lags = Vec::new();
    for consumer in consumers {
        lags.extend(tokio::time::timeout(DEADLINE, consumer).await???);
    }
    Ok(Latency::of(lags))
}

/// Publishes messages that say when they were, and waits for the last confirm.
async fn publish_at_a_rate(channel: Channel, rate: u32, count: u32) -> anyhow::Result<()> {
    let begun = tokio::time::Instant::now();
    let mut unconfirmed = FuturesUnordered::new();
    let mut body = [b'.'; MESSAGE_BYTES];
    let partitions: Vec<Partition> = Partition::all(PARTITIONS).collect();
    for (index, partition) in (0..count).zip(partitions.into_iter().cycle()) {
        tokio::time::sleep_until(begun + Duration::from_secs(1) * index / rate).await;
        body[..8].copy_from_slice(&now_us().to_le_bytes());
        unconfirmed.push(publish(&channel, &queue_of("commits", partition), &body).await?);
        while let Some(Some(answer)) = unconfirmed.next().now_or_never() {
            confirmed(Some(answer))?;
        }
    }
    while !unconfirmed.is_empty() {
        confirmed(unconfirmed.next().await)?;
    }
    Ok(())
}

fn confirmed(answer: Option<lapin::Result<Confirmation>>) -> anyhow::Result<()> {
    match answer {
        Some(Ok(Confirmation::Ack(None))) => Ok(()),
        other => anyhow::bail!("RabbitMQ did not take a message: {other:?}"),
    }
}

/// The keys and rows of the messages.
fn rows_of(texts: &[Text]) -> anyhow::Result<Vec<(String, String)>> {
    let mut rows = Vec::new();
    for (partition, text) in texts {
        let batch = Batch::decode(text, *partition)?;
        rows.extend(batch.changes.iter().filter_map(|change| Some((format!("bare:{}", change.key), change.row?.get().to_owned()))));
    }
    Ok(rows)
}

fn mset(rows: &[(String, String)]) -> redis::Pipeline {
    let mut pipe = redis::pipe();
    pipe.cmd("MSET").arg(rows);
    pipe
}

fn sets(rows: &[(String, String)]) -> redis::Pipeline {
    let mut pipe = redis::pipe();
    for (key, row) in rows {
        pipe.set(key, row);
    }
    pipe
}

/// Seconds that Redis takes for the commands.
fn into_redis(url: &str, pipes: impl Iterator<Item = redis::Pipeline>) -> anyhow::Result<f64> {
    let mut client = redis::Client::open(url)?.get_connection()?;
    let pipes: Vec<redis::Pipeline> = pipes.collect();
    let begun = Instant::now();
    for pipe in &pipes {
        pipe.exec(&mut client)?;
    }
    Ok(begun.elapsed().as_secs_f64())
}
