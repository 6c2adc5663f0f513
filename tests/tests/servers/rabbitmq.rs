//! RabbitMQ: what only a real server and a real network can do to a connection.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use lapin::options::{BasicPublishOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use rowcast::broker::rabbitmq::{QueueType, RabbitBroker, RabbitPublishing, RabbitSettings};
use rowcast::broker::{Address, Broker, Error, Event, PartitionQueue, Publishing, Ticket};
use rowcast::change::Partition;
use rowcast_testkit::proxy::{Direction, Proxy};
use rowcast_testkit::rabbitmq::RabbitServer;
use rowcast_testkit::wait::until;

use crate::broker::{DEADLINE, ONE, PARTITIONS, confirmed, lock, message, numbers, publish, receive, soon, state};

/// For tests that do nothing to the server. It ends with the process.
static SHARED: LazyLock<RabbitServer> = LazyLock::new(|| RabbitServer::start().expect("a RabbitMQ server"));

/// Few, so that messages wait behind those that a consumer holds.
const PREFETCH: u16 = 60;

const TYPES: [QueueType; 2] = [QueueType::Quorum, QueueType::Classic];

pub fn shared() -> &'static RabbitServer {
    tokio::task::block_in_place(|| &*SHARED)
}

/// A broker on the shared server; the test's name keeps its pipeline apart.
pub fn shared_broker(test: &str, queue_type: QueueType) -> RabbitBroker {
    broker(&shared().url(), test, queue_type)
}

fn broker(url: &str, test: &str, queue_type: QueueType) -> RabbitBroker {
    let pipeline = format!("{test}-{}", queue_type.name());
    let settings = RabbitSettings::new(url, &pipeline, PARTITIONS, queue_type).and_then(|settings| settings.with_prefetch(PREFETCH));
    RabbitBroker::new(settings.expect("settings"))
}

/// Runs what blocks, such as starting a server, without stopping the test's other tasks.
fn blocking<T>(work: impl FnOnce() -> anyhow::Result<T>) -> T {
    tokio::task::block_in_place(work).unwrap()
}

/// Somebody else's channel.
async fn stranger() -> (Connection, Channel) {
    let connection = Connection::connect(&shared().url(), ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    (connection, channel)
}

/// Reads events until the connection is over, and says which messages were confirmed before.
async fn until_lost(publishing: &mut RabbitPublishing) -> (BTreeSet<Ticket>, String) {
    let mut confirmed = BTreeSet::new();
    loop {
        match soon("the end of the connection", publishing.event()).await {
            Ok(Event::Confirmed(ticket)) => assert!(confirmed.insert(ticket), "{ticket:?} was confirmed twice"),
            Ok(other) => panic!("{other:?}"),
            Err(Error::Lost(why)) => return (confirmed, why),
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// Keeps up to 100 messages on their way until the connection is over; their number is their body. Says which were confirmed, and
/// how many were handed over. `at` is called at the message of that number.
async fn publish_until_lost(publishing: &mut RabbitPublishing, first: usize, at: usize, strike: impl FnOnce()) -> (BTreeSet<usize>, usize) {
    let mut strike = Some(strike);
    let (mut sent, mut good) = (0, BTreeSet::new());
    loop {
        while sent - good.len() < 100 {
            if sent == at
                && let Some(strike) = strike.take()
            {
                strike();
            }
            let body = format!("{}{}", first + sent, " ".repeat(2_000));
            if publishing.publish(message(Address::Partition(ONE), body)).await.is_err() {
                break;
            }
            sent += 1;
        }
        match soon("an event", publishing.event()).await {
            Ok(Event::Confirmed(ticket)) => assert!(good.insert(first + usize::try_from(ticket.0).unwrap() - 1)),
            Ok(other) => panic!("{other:?}"),
            Err(Error::Lost(_)) => return (good, sent),
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// Everything in partition 1, which is then empty.
async fn drain(broker: &RabbitBroker) -> Vec<usize> {
    let mut publishing = lock(broker).await;
    let tickets = publish(&mut publishing, ONE, std::iter::once(usize::MAX)).await;
    confirmed(&mut publishing, tickets).await;
    let mut queue = broker.queue(ONE).await.unwrap();
    let mut drained = Vec::new();
    loop {
        let delivery = soon("a message", queue.next()).await.unwrap();
        queue.ack(delivery.tag).await.unwrap();
        let number = std::str::from_utf8(&delivery.body).unwrap().trim().parse().unwrap();
        if number == usize::MAX {
            return drained;
        }
        drained.push(number);
    }
}

/// Receives without acking until the connection is over.
async fn consume_until_lost(queue: &mut impl PartitionQueue) {
    let rest = async { while queue.next().await.is_ok() {} };
    soon("the consumer's end", rest).await;
    assert!(matches!(queue.next().await, Err(Error::Lost(_))));
}

/// What is confirmed is there, in order, once; what is there beyond it was handed over.
fn assert_kept(found: &[usize], confirmed: &BTreeSet<usize>) {
    assert!(found.is_sorted(), "out of order: {found:?}");
    let lost: Vec<_> = confirmed.iter().filter(|number| found.binary_search(number).is_err()).collect();
    assert!(lost.is_empty(), "confirmed, but gone: {lost:?}");
}

fn fatal<T>(result: Result<T, Error>, says: &[&str]) {
    match result {
        Err(Error::Fatal(text)) => {
            assert!(says.iter().all(|part| text.contains(part)), "{text}");
            assert!(!text.contains("sesame"), "a password in {text}");
        }
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("not refused"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_somebody_can_mend_is_said_with_the_remedy() {
    let port = shared().port();
    blocking(|| {
        shared().control(&["add_user", "ada", "sesame"])?;
        shared().control(&["set_permissions", "ada", "^none$", "^none$", "^none$"])
    });
    let open = |url: &str| broker(url, "mend", QueueType::Quorum);
    let wrong_password = open(&format!("amqp://guest:sesame@127.0.0.1:{port}"));
    fatal(wrong_password.publishing().await, &["127.0.0.1", "ACCESS_REFUSED", "Correct the user name or password"]);
    fatal(wrong_password.queue(ONE).await, &["Correct the user name or password"]);
    fatal(wrong_password.inspect().await, &["Correct the user name or password"]);
    fatal(wrong_password.request(vec![]).await, &["Correct the user name or password"]);
    let no_vhost = open(&format!("amqp://guest:guest@127.0.0.1:{port}/nowhere"));
    fatal(no_vhost.publishing().await, &["nowhere", "add_vhost"]);
    let no_permission = open(&format!("amqp://ada:sesame@127.0.0.1:{port}"));
    fatal(no_permission.publishing().await, &["rowcast.mend-quorum", "set_permissions"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_with_other_arguments_is_named_with_what_differs() {
    drop(lock(&shared_broker("other", QueueType::Quorum)).await);
    let settings = RabbitSettings::new(&shared().url(), "other-quorum", PARTITIONS, QueueType::Classic).unwrap();
    let other = RabbitBroker::new(settings);
    let refusal = until("the lock", DEADLINE, async || other.publishing().await.err().filter(|error| !matches!(error, Error::Standby(_))));
    fatal::<()>(Err(refusal.await.unwrap()), &["rowcast.other-quorum.1of2", "x-queue-type", "delete it"]);
    fatal(other.queue(ONE).await, &["rowcast.other-quorum.1of2", "x-queue-type"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_is_tried_again() {
    let proxy = Proxy::start(([127, 0, 0, 1], shared().port()).into()).await.unwrap();
    let broker = broker(&shared().url_through(proxy.port()), "absent", QueueType::Classic);
    proxy.refuse();
    until("a refusal", DEADLINE, async || matches!(broker.publishing().await, Err(Error::Lost(_))).then_some(())).await.unwrap();
    assert!(matches!(broker.queue(ONE).await, Err(Error::Lost(_))));
    // It accepts and says nothing.
    proxy.resume();
    proxy.stall(Direction::ToClient);
    let begun = Instant::now();
    assert!(matches!(broker.publishing().await, Err(Error::Lost(_))));
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    // Nor does the attempt go on behind our back.
    until("the attempt to be given up", DEADLINE, async || (proxy.connections() == 0).then_some(())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_asked_of_the_server_and_its_refusal_told() {
    let settings = RabbitSettings::new(&shared().url().replace("amqp:", "amqps:"), "tls", PARTITIONS, QueueType::Classic).unwrap();
    match soon("a refusal", RabbitBroker::new(settings).publishing()).await {
        Err(Error::Lost(why) | Error::Fatal(why)) => assert!(why.contains("127.0.0.1") && !why.contains("longer than"), "{why}"),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("there is no TLS there"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_returned_message_fails_all_that_are_unconfirmed_and_is_itself_never_confirmed() {
    for queue_type in TYPES {
        let broker = shared_broker("returned", queue_type);
        let mut publishing = lock(&broker).await;
        let (_connection, channel) = stranger().await;
        let queue = format!("rowcast.returned-{}.2of2", queue_type.name());
        channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
        let (mut routable, mut unroutable) = (BTreeSet::new(), BTreeSet::new());
        for number in 0..400 {
            let partition = Partition { number: if number % 20 == 19 { 2 } else { 1 }, of: PARTITIONS };
            let Ok(ticket) = publishing.publish(message(Address::Partition(partition), "x")).await else { break };
            if partition == ONE { &mut routable } else { &mut unroutable }.insert(ticket);
        }
        assert!(!unroutable.is_empty());
        let (confirmed, why) = until_lost(&mut publishing).await;
        assert!(confirmed.is_subset(&routable), "unroutable, but confirmed: {:?}", confirmed.intersection(&unroutable));
        assert!(why.contains("returned") && why.contains("2of2"), "{why}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strangers_queue_does_not_pass_for_ours() {
    for queue_type in TYPES {
        let broker = shared_broker("stranger", queue_type);
        let mut publishing = lock(&broker).await;
        let (_connection, channel) = stranger().await;
        let ours = format!("rowcast.stranger-{}.1of2", queue_type.name());
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        let theirs = channel.queue_declare("".into(), options, FieldTable::default()).await.unwrap();
        let exchange = format!("rowcast.stranger-{}", queue_type.name());
        channel
            .queue_bind(theirs.name().clone(), exchange.as_str().into(), "1of2".into(), QueueBindOptions::default(), FieldTable::default())
            .await
            .unwrap();
        channel.queue_delete(ours.as_str().into(), QueueDeleteOptions::default()).await.unwrap();
        let tickets = publish(&mut publishing, ONE, 0..5).await;
        confirmed(&mut publishing, tickets).await;
        match publishing.look_for_queues().await {
            Err(Error::Lost(why)) => assert!(why.contains(&ours), "{why}"),
            other => panic!("{other:?}"),
        }
        until_lost(&mut publishing).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_binding_is_made_again() {
    let broker = shared_broker("unbound", QueueType::Quorum);
    let mut publishing = lock(&broker).await;
    let (_connection, channel) = stranger().await;
    channel
        .queue_unbind("rowcast.unbound-quorum.1of2".into(), "rowcast.unbound-quorum".into(), "1of2".into(), FieldTable::default())
        .await
        .unwrap();
    publishing.look_for_queues().await.unwrap();
    let tickets = publish(&mut publishing, ONE, 0..1).await;
    confirmed(&mut publishing, tickets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purged_queue_disturbs_neither_side() {
    for queue_type in TYPES {
        let broker = shared_broker("purged", queue_type);
        let mut publishing = lock(&broker).await;
        let tickets = publish(&mut publishing, ONE, 0..200).await;
        let queue_name = format!("rowcast.purged-{}.1of2", queue_type.name());
        blocking(|| shared().control(&["purge_queue", &queue_name]));
        confirmed(&mut publishing, tickets).await;
        blocking(|| shared().control(&["purge_queue", &queue_name]));
        let mut queue = broker.queue(ONE).await.unwrap();
        let tickets = publish(&mut publishing, ONE, 200..203).await;
        confirmed(&mut publishing, tickets).await;
        assert_eq!(numbers(&receive(&mut queue, 3).await), [200, 201, 202]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_connection_loses_nothing_that_was_confirmed() {
    for queue_type in TYPES {
        let proxy = Proxy::start(([127, 0, 0, 1], shared().port()).into()).await.unwrap();
        let broker = broker(&shared().url_through(proxy.port()), "cut", queue_type);
        let mut all = BTreeSet::new();
        let mut first = 0;
        for direction in [Direction::ToServer, Direction::ToClient, Direction::ToServer] {
            let mut publishing = lock(&broker).await;
            // Somewhere inside of a message, and inside of a confirm.
            let bytes = if direction == Direction::ToServer { 301_017 } else { 1_003 };
            let (good, sent) = publish_until_lost(&mut publishing, first, 150, || proxy.cut_after(direction, bytes)).await;
            assert!(!good.is_empty() && good.len() <= sent);
            all.extend(good);
            first += sent;
        }
        assert_kept(&drain(&broker).await, &all);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_consumer_gets_the_unacked_again_in_order() {
    for queue_type in TYPES {
        let proxy = Proxy::start(([127, 0, 0, 1], shared().port()).into()).await.unwrap();
        let direct = broker(&shared().url(), "cut-consumer", queue_type);
        let proxied = broker(&shared().url_through(proxy.port()), "cut-consumer", queue_type);
        let mut publishing = lock(&direct).await;
        let mut active = proxied.queue(ONE).await.unwrap();
        let mut standby = direct.queue(ONE).await.unwrap();
        let tickets = publish(&mut publishing, ONE, 0..50).await;
        confirmed(&mut publishing, tickets).await;
        let deliveries = receive(&mut active, 30).await;
        active.ack(deliveries[9].tag).await.unwrap();
        // The ack has arrived once a later question is answered.
        active.depth().await.unwrap();
        proxy.cut();
        assert_eq!(numbers(&receive(&mut standby, 40).await), Vec::from_iter(10..50));
        // What was already here is still handed out; then comes the end, for ever.
        let rest = async { while active.next().await.is_ok() {} };
        soon("the end", rest).await;
        assert!(matches!(active.next().await, Err(Error::Lost(_))));
        assert!(matches!(active.ack(deliveries[29].tag).await, Err(Error::Lost(_))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_open_connection_is_noticed_by_its_heartbeat() {
    let proxy = Proxy::start(([127, 0, 0, 1], shared().port()).into()).await.unwrap();
    let url = format!("{}?heartbeat=2", shared().url_through(proxy.port()));
    let broker = broker(&url, "half-open", QueueType::Quorum);
    let mut publishing = lock(&broker).await;
    let mut queue = broker.queue(ONE).await.unwrap();
    proxy.stall(Direction::ToClient);
    let ticket = publishing.publish(message(Address::Partition(ONE), "x")).await.unwrap();
    let begun = Instant::now();
    let (publisher, consumer) = tokio::join!(until_lost(&mut publishing), soon("the end", queue.next()));
    assert!(!publisher.0.contains(&ticket));
    assert!(matches!(consumer, Err(Error::Lost(_))));
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    // The broker notices too, and frees the lock.
    proxy.cut();
    proxy.resume();
    let mut publishing = lock(&broker).await;
    publishing.look_for_queues().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_cannot_be_decompressed_is_handed_out_as_it_is() {
    let broker = shared_broker("garbage", QueueType::Quorum);
    let mut queue = broker.queue(ONE).await.unwrap();
    let (_connection, channel) = stranger().await;
    let properties = BasicProperties::default().with_content_encoding("zstd".into());
    channel
        .basic_publish("rowcast.garbage-quorum".into(), "1of2".into(), BasicPublishOptions::default(), b"garbage", properties)
        .await
        .unwrap();
    assert_eq!(receive(&mut queue, 1).await[0].body, b"garbage");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_publisher_waits_and_goes_on_and_consumers_go_on_all_the_while() {
    let server = blocking(RabbitServer::start);
    let broker = broker(&server.url(), "blocked", QueueType::Quorum);
    let mut publishing = lock(&broker).await;
    let mut queue = broker.queue(ONE).await.unwrap();
    let tickets = publish(&mut publishing, ONE, 0..10).await;
    confirmed(&mut publishing, tickets).await;
    let before = receive(&mut queue, 10).await;
    blocking(|| server.set_alarm(true));
    let mut tickets = publish(&mut publishing, ONE, 10..40).await;
    let blocked = soon("the alarm", publishing.event()).await.unwrap();
    assert!(matches!(blocked, Event::Blocked(_)), "{blocked:?}");
    // Nothing waits here, and nothing is told of a missing answer.
    tickets.extend(publish(&mut publishing, ONE, 40..50).await);
    publishing.look_for_queues().await.unwrap();
    queue.request(b"lost, maybe".to_vec()).await.unwrap();
    queue.ack(before[9].tag).await.unwrap();
    assert_eq!(queue.depth().await.unwrap(), 0);
    blocking(|| server.set_alarm(false));
    let mut unblocked = false;
    while !tickets.is_empty() || !unblocked {
        match soon("what was held up", publishing.event()).await.unwrap() {
            Event::Confirmed(ticket) => assert!(tickets.remove(&ticket)),
            Event::Control { body, .. } => assert_eq!(body, b"lost, maybe"),
            Event::Unblocked => unblocked = true,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(numbers(&receive(&mut queue, 40).await), Vec::from_iter(10..50));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_or_restarted_keeps_what_it_confirmed() {
    let mut server = blocking(RabbitServer::start);
    let brokers = TYPES.map(|queue_type| broker(&server.url(), "restarted", queue_type));
    let (mut all, mut sent) = ([BTreeSet::new(), BTreeSet::new()], [0, 0]);
    for killed in [true, false] {
        let record = format!("record {killed}").into_bytes();
        let mut sessions = Vec::new();
        for broker in &brokers {
            let mut publishing = lock(broker).await;
            let ticket = publishing.publish(message(Address::Record, record.clone())).await.unwrap();
            confirmed(&mut publishing, BTreeSet::from([ticket])).await;
            drop(publishing);
            sessions.push((lock(broker).await, broker.queue(ONE).await.unwrap()));
        }
        let [(quorum, active), (classic, other)] = &mut sessions[..] else { unreachable!() };
        let strike = || blocking(|| if killed { server.kill() } else { server.stop() });
        let ends = tokio::join!(
            publish_until_lost(quorum, sent[0], 1_000, strike),
            publish_until_lost(classic, sent[1], usize::MAX, || ()),
            consume_until_lost(active),
            consume_until_lost(other)
        );
        assert!(ends.0.0.len() > 800 && !ends.1.0.is_empty(), "{} and {}", ends.0.0.len(), ends.1.0.len());
        for (index, (good, count)) in [ends.0, ends.1].into_iter().enumerate() {
            all[index].extend(good);
            sent[index] += count;
        }
        blocking(|| server.start_again());
        for broker in &brokers {
            assert_eq!(lock(broker).await.record().await.unwrap().as_ref(), Some(&record));
        }
    }
    for (broker, all) in brokers.iter().zip(&all) {
        assert_kept(&drain(broker).await, all);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_that_dies_lets_another_one_in() {
    let broker = shared_broker("taken-over", QueueType::Quorum);
    let proxy = Proxy::start(([127, 0, 0, 1], shared().port()).into()).await.unwrap();
    let settings = RabbitSettings::new(&shared().url_through(proxy.port()), "taken-over-quorum", PARTITIONS, QueueType::Quorum).unwrap();
    let mut first = lock(&RabbitBroker::new(settings)).await;
    assert!(matches!(broker.publishing().await, Err(Error::Standby(_))));
    proxy.cut();
    let second = lock(&broker).await;
    until_lost(&mut first).await;
    drop(second);
    until("the lock to go", DEADLINE, async || state(&broker, "publisher").await?.depth.is_none().then_some(())).await.unwrap();
}
