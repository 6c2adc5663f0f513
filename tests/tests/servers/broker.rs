//! What every broker promises, whichever it is. An implementation is added by one line at the end.

use std::collections::BTreeSet;
use std::future::Future;
use std::time::{Duration, Instant};

use rowcast::broker::{Address, Broker, Delivery, Error, Event, Message, PartitionQueue, Publishing, QueueState, Ticket};
use rowcast::change::Partition;
use rowcast_testkit::wait::until;

/// Longer than anything takes on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Every broker of the suite has two partitions.
pub const PARTITIONS: u16 = 2;
pub const ONE: Partition = Partition { number: 1, of: PARTITIONS };
const TWO: Partition = Partition { number: 2, of: PARTITIONS };

/// What does not come within the deadline fails the test.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

pub fn message(to: Address, body: impl Into<Vec<u8>>) -> Message {
    Message { to, kind: "rowcast.batch", body: body.into() }
}

/// Hands over one message for each number, which is also its body.
pub async fn publish(publishing: &mut impl Publishing, partition: Partition, numbers: impl Iterator<Item = usize>) -> BTreeSet<Ticket> {
    let mut tickets = BTreeSet::new();
    for number in numbers {
        tickets.insert(publishing.publish(message(Address::Partition(partition), number.to_string())).await.unwrap());
    }
    tickets
}

/// Waits until exactly these are confirmed, each once.
pub async fn confirmed(publishing: &mut impl Publishing, mut tickets: BTreeSet<Ticket>) {
    while !tickets.is_empty() {
        match soon("a confirm", publishing.event()).await.unwrap() {
            Event::Confirmed(ticket) => assert!(tickets.remove(&ticket), "{ticket:?} was confirmed, but not waited for"),
            other => panic!("{other:?} instead of a confirm"),
        }
    }
}

/// A queue with these numbers in it.
async fn filled(broker: &impl Broker, numbers: impl Iterator<Item = usize>) {
    let mut publishing = lock(broker).await;
    let tickets = publish(&mut publishing, ONE, numbers).await;
    confirmed(&mut publishing, tickets).await;
}

/// Becomes the publisher, once the one before has let go.
pub async fn lock<B: Broker>(broker: &B) -> B::Publishing {
    let taken = until("the publisher's place", DEADLINE, async || match broker.publishing().await {
        Ok(publishing) => Some(publishing),
        // A broker that has just begun may be too busy to answer in time.
        Err(Error::Standby(_) | Error::Lost(_)) => None,
        Err(error) => panic!("{error}"),
    });
    taken.await.unwrap()
}

pub async fn receive(queue: &mut impl PartitionQueue, count: usize) -> Vec<Delivery> {
    let mut deliveries = Vec::new();
    while deliveries.len() < count {
        deliveries.push(soon("a message", queue.next()).await.unwrap());
    }
    deliveries
}

pub fn numbers(deliveries: &[Delivery]) -> Vec<usize> {
    deliveries.iter().map(|delivery| String::from_utf8(delivery.body.clone()).unwrap().parse().unwrap()).collect()
}

/// What an inspection tells of a queue; every one tells of the partitions'.
pub async fn state(broker: &impl Broker, end: &str) -> Option<QueueState> {
    broker.inspect().await.unwrap().into_iter().find(|state| state.name.ends_with(end))
}

/// Waits until a partition's queue has this depth.
pub async fn depth(broker: &impl Broker, end: &str, depth: Option<u64>) {
    let reached = async || (state(broker, end).await.expect("a partition's queue").depth == depth).then_some(());
    until(&format!("{end} to have depth {depth:?}"), DEADLINE, reached).await.unwrap();
}

/// The same for another queue, where the broker tells of it.
pub async fn depth_if_told(broker: &impl Broker, end: &str, depth: u64) {
    let reached = async || state(broker, end).await.is_none_or(|state| state.depth == Some(depth)).then_some(());
    until(&format!("{end} to have depth {depth}"), DEADLINE, reached).await.unwrap();
}

pub async fn messages_arrive_in_the_order_in_which_they_were_handed_over<B: Broker>(broker: B) {
    let mut publishing = lock(&broker).await;
    // Some are compressed on the wire, some are not.
    let bodies: Vec<String> = (0..300).map(|number| format!("{number}{}", " ".repeat(number * 37 % 9_000))).collect();
    let mut tickets = BTreeSet::new();
    for (index, body) in bodies.iter().enumerate() {
        let partition = if index % 2 == 0 { ONE } else { TWO };
        let ticket = publishing.publish(message(Address::Partition(partition), body.as_str())).await.unwrap();
        assert_eq!(ticket, Ticket(index as u64 + 1));
        tickets.insert(ticket);
    }
    confirmed(&mut publishing, tickets).await;
    for (partition, first) in [(ONE, 0), (TWO, 1)] {
        let mut queue = broker.queue(partition).await.unwrap();
        let mut deliveries = Vec::new();
        for _ in 0..3 {
            deliveries.extend(receive(&mut queue, 50).await);
            queue.ack(deliveries[deliveries.len() - 1].tag).await.unwrap();
        }
        let expected = bodies.iter().skip(first).step_by(2);
        assert!(deliveries.iter().map(|delivery| delivery.body.as_slice()).eq(expected.map(|body| body.as_bytes())));
        assert!(deliveries.is_sorted_by(|one, next| one.tag < next.tag));
    }
}

pub async fn what_is_unacked_comes_again_in_order_after_leaving<B: Broker>(broker: B) {
    filled(&broker, 1..=60).await;
    for (first, dropped) in [(1, false), (11, true), (21, false)] {
        let mut queue = broker.queue(ONE).await.unwrap();
        let deliveries = receive(&mut queue, 30).await;
        assert_eq!(numbers(&deliveries), Vec::from_iter(first..first + 30));
        queue.ack(deliveries[9].tag).await.unwrap();
        if dropped {
            drop(queue);
        } else {
            queue.leave().await.unwrap();
        }
        // An ack that was sent before a drop is not overtaken by it.
        depth(&broker, "1of2", Some(60 - (first as u64 + 9))).await;
    }
}

pub async fn a_second_consumer_stands_by_and_takes_over_in_order<B: Broker>(broker: B) {
    for dropped in [false, true] {
        let mut active = broker.queue(ONE).await.unwrap();
        let mut standby = broker.queue(ONE).await.unwrap();
        // More than one consumer is sent at once: the standby must not begin with what nobody was sent yet.
        filled(&broker, 1..=100).await;
        let deliveries = receive(&mut active, 25).await;
        assert_eq!(numbers(&deliveries), Vec::from_iter(1..=25));
        assert_eq!(standby.ready(), None);
        active.ack(deliveries[4].tag).await.unwrap();
        if dropped {
            drop(active);
        } else {
            active.leave().await.unwrap();
        }
        // A few acks only: a quorum queue's channel that is 32 of them behind keeps back the rest, and loses them when it closes.
        for first in [6, 44, 82] {
            let deliveries = receive(&mut standby, 38.min(101 - first)).await;
            assert_eq!(numbers(&deliveries), Vec::from_iter(first..first + deliveries.len()));
            standby.ack(deliveries[deliveries.len() - 1].tag).await.unwrap();
        }
        standby.leave().await.unwrap();
        depth(&broker, "1of2", Some(0)).await;
    }
}

pub async fn an_ack_is_for_everything_before_it<B: Broker>(broker: B) {
    filled(&broker, 1..=10).await;
    let mut queue = broker.queue(ONE).await.unwrap();
    let deliveries = receive(&mut queue, 10).await;
    queue.ack(deliveries[9].tag).await.unwrap();
    queue.leave().await.unwrap();
    filled(&broker, 11..=11).await;
    let mut queue = broker.queue(ONE).await.unwrap();
    assert_eq!(numbers(&receive(&mut queue, 1).await), [11]);
}

pub async fn what_has_arrived_is_had_without_waiting<B: Broker>(broker: B) {
    let mut queue = broker.queue(ONE).await.unwrap();
    assert_eq!(queue.ready(), None);
    filled(&broker, 1..=3).await;
    let mut deliveries = receive(&mut queue, 1).await;
    for _ in 0..2 {
        deliveries.push(
            until("a message to arrive", DEADLINE, {
                let queue = std::cell::RefCell::new(&mut queue);
                move || std::future::ready(queue.borrow_mut().ready())
            })
            .await
            .unwrap(),
        );
    }
    assert_eq!(numbers(&deliveries), [1, 2, 3]);
    assert_eq!(queue.ready(), None);
}

pub async fn depth_counts_what_nobody_holds<B: Broker>(broker: B) {
    let mut queue = broker.queue(TWO).await.unwrap();
    assert_eq!(queue.depth().await.unwrap(), 0);
    filled(&broker, 1..=7).await;
    depth(&broker, "1of2", Some(7)).await;
    assert_eq!(state(&broker, "1of2").await.unwrap().consumers, 0);
    assert_eq!(state(&broker, "2of2").await.unwrap().consumers, 1);
    assert_eq!(queue.depth().await.unwrap(), 0);
}

pub async fn the_record_is_the_newest_one<B: Broker>(broker: B) {
    let mut publishing = lock(&broker).await;
    assert_eq!(publishing.record().await.unwrap(), None);
    let mut expected = None;
    for session in 0..3 {
        let mut tickets = BTreeSet::new();
        for number in 0..4 {
            let body = format!("{session}.{number}");
            tickets.insert(publishing.publish(message(Address::Record, body.as_str())).await.unwrap());
            expected = Some(body.into_bytes());
        }
        confirmed(&mut publishing, tickets).await;
        drop(publishing);
        publishing = lock(&broker).await;
        // Reading leaves it where it is.
        assert_eq!(publishing.record().await.unwrap(), expected);
        assert_eq!(publishing.record().await.unwrap(), expected);
    }
    depth_if_told(&broker, "position", 1).await;
}

pub async fn there_is_one_publisher_and_another_stands_by<B: Broker>(broker: B) {
    let publishing = lock(&broker).await;
    for _ in 0..2 {
        match broker.publishing().await {
            Err(Error::Standby(says)) => assert!(says.contains("another publisher"), "{says}"),
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("two publishers at once"),
        }
    }
    drop(publishing);
    let mut publishing = lock(&broker).await;
    let tickets = publish(&mut publishing, ONE, 0..1).await;
    confirmed(&mut publishing, tickets).await;
}

pub async fn requests_reach_the_publisher<B: Broker>(broker: B) {
    broker.request(b"before anybody was there".to_vec()).await.unwrap();
    let mut publishing = lock(&broker).await;
    let mut heard = async |expected: &[u8]| match soon("a request", publishing.event()).await.unwrap() {
        Event::Control { body, .. } => assert_eq!(body, expected),
        other => panic!("{other:?} instead of a request"),
    };
    heard(b"before anybody was there").await;
    let mut queue = broker.queue(ONE).await.unwrap();
    for body in [b"one".as_slice(), b"two", b"three"] {
        queue.request(body.to_vec()).await.unwrap();
        heard(body).await;
    }
    broker.request(b"four".to_vec()).await.unwrap();
    heard(b"four").await;
}

pub async fn a_request_comes_again_to_the_next_publisher_until_it_is_settled<B: Broker>(broker: B) {
    for body in [b"one".as_slice(), b"two", b"three"] {
        broker.request(body.to_vec()).await.unwrap();
    }
    let heard = async |publishing: &mut B::Publishing| match soon("a request", publishing.event()).await.unwrap() {
        Event::Control { body, number } => (String::from_utf8(body).unwrap(), number),
        other => panic!("{other:?} instead of a request"),
    };
    let mut first = lock(&broker).await;
    let mut numbers = Vec::new();
    for expected in ["one", "two", "three"] {
        let (body, number) = heard(&mut first).await;
        assert_eq!(body, expected);
        numbers.push(number);
    }
    first.settle(numbers[1]).await.unwrap();
    // What is confirmed after the settling was handed over after it, and so was the settling.
    let tickets = publish(&mut first, ONE, 0..1).await;
    confirmed(&mut first, tickets).await;
    drop(first);
    let mut second = lock(&broker).await;
    for expected in ["one", "three"] {
        let (body, number) = heard(&mut second).await;
        assert_eq!(body, expected);
        second.settle(number).await.unwrap();
    }
    let tickets = publish(&mut second, ONE, 1..2).await;
    confirmed(&mut second, tickets).await;
    drop(second);
    broker.request(b"four".to_vec()).await.unwrap();
    assert_eq!(heard(&mut lock(&broker).await).await.0, "four");
}

pub async fn a_dead_letter_is_stored_when_the_call_returns<B: Broker>(broker: B) {
    let mut queue = broker.queue(ONE).await.unwrap();
    for number in 0..3 {
        queue.dead_letter(vec![b'x'; 10_000 * number]).await.unwrap();
    }
    depth_if_told(&broker, "dead", 3).await;
    let mut publishing = lock(&broker).await;
    let ticket = publishing.publish(message(Address::Dead, "from the publisher")).await.unwrap();
    confirmed(&mut publishing, BTreeSet::from([ticket])).await;
    depth_if_told(&broker, "dead", 4).await;
}

pub async fn a_removed_layout_is_gone_and_told_to_whoever_consumes_it<B: Broker>(broker: B) {
    filled(&broker, 1..=3).await;
    let mut queue = broker.queue(TWO).await.unwrap();
    broker.remove_layout(PARTITIONS).await.unwrap();
    assert!(matches!(soon("the end", queue.next()).await, Err(Error::Lost(_))));
    assert!(matches!(soon("the same end", queue.next()).await, Err(Error::Lost(_))));
    assert_eq!(queue.ready(), None);
    depth(&broker, "1of2", None).await;
    depth(&broker, "2of2", None).await;
    // Missing queues are no error.
    broker.remove_layout(PARTITIONS).await.unwrap();
    broker.remove_layout(7).await.unwrap();
}

pub async fn a_queue_that_nobody_consumes_is_told<B: Broker>(broker: B) {
    let mut publishing = lock(&broker).await;
    unconsumed(&mut publishing, &[ONE, TWO]).await;
    let queue = broker.queue(TWO).await.unwrap();
    unconsumed(&mut publishing, &[ONE]).await;
    queue.leave().await.unwrap();
    unconsumed(&mut publishing, &[ONE, TWO]).await;
}

/// Waits until nobody consumes these partitions; a broker counts whoever comes or leaves a moment later.
async fn unconsumed(publishing: &mut impl Publishing, partitions: &[Partition]) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let found = publishing.look_for_queues().await.unwrap();
        if found == partitions {
            return;
        }
        assert!(Instant::now() < deadline, "nobody consumes {found:?} instead of {partitions:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub async fn a_missing_queue_is_noticed_and_made_again_by_the_next_connection<B: Broker>(broker: B) {
    let mut publishing = lock(&broker).await;
    publishing.look_for_queues().await.unwrap();
    broker.remove_layout(PARTITIONS).await.unwrap();
    assert!(matches!(publishing.look_for_queues().await, Err(Error::Lost(_))));
    assert!(matches!(soon("the end", publishing.event()).await, Err(Error::Lost(_))));
    assert!(matches!(publishing.publish(message(Address::Partition(ONE), "late")).await, Err(Error::Lost(_))));
    drop(publishing);
    let mut publishing = lock(&broker).await;
    publishing.look_for_queues().await.unwrap();
    let tickets = publish(&mut publishing, ONE, 0..1).await;
    confirmed(&mut publishing, tickets).await;
}

pub async fn an_unroutable_message_ends_the_connection_and_is_never_confirmed<B: Broker>(broker: B) {
    let mut publishing = lock(&broker).await;
    broker.remove_layout(PARTITIONS).await.unwrap();
    let mut tickets = BTreeSet::new();
    for number in 0..50 {
        // Once the end is known nothing more is taken.
        match publishing.publish(message(Address::Partition(ONE), number.to_string())).await {
            Ok(ticket) => assert!(tickets.insert(ticket)),
            Err(error) => assert!(matches!(error, Error::Lost(_)), "{error:?}"),
        }
    }
    for _ in 0..3 {
        match soon("the end", publishing.event()).await {
            Err(Error::Lost(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The suite for one implementation: `$broker` makes a broker with two partitions for a pipeline that nobody else uses.
macro_rules! broker_suite {
    ($implementation:ident, $broker:expr $(, $more:ident)*) => {
        mod $implementation {
            broker_suite!(@tests $broker,
                messages_arrive_in_the_order_in_which_they_were_handed_over
                what_is_unacked_comes_again_in_order_after_leaving
                a_second_consumer_stands_by_and_takes_over_in_order
                an_ack_is_for_everything_before_it
                what_has_arrived_is_had_without_waiting
                depth_counts_what_nobody_holds
                the_record_is_the_newest_one
                there_is_one_publisher_and_another_stands_by
                requests_reach_the_publisher
                a_request_comes_again_to_the_next_publisher_until_it_is_settled
                a_dead_letter_is_stored_when_the_call_returns
                a_removed_layout_is_gone_and_told_to_whoever_consumes_it
                a_queue_that_nobody_consumes_is_told
                $($more)*
            );
        }
    };
    (@tests $broker:expr, $($test:ident)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $test() {
            super::$test(($broker)(stringify!($test))).await;
        })*
    };
}

broker_suite!(memory, |_| rowcast::broker::memory::MemoryBroker::new(super::PARTITIONS));
broker_suite!(
    rabbitmq_quorum,
    |test| crate::rabbitmq::shared_broker(test, rowcast::broker::rabbitmq::QueueType::Quorum),
    a_missing_queue_is_noticed_and_made_again_by_the_next_connection,
    an_unroutable_message_ends_the_connection_and_is_never_confirmed
);
broker_suite!(
    rabbitmq_classic,
    |test| crate::rabbitmq::shared_broker(test, rowcast::broker::rabbitmq::QueueType::Classic),
    a_missing_queue_is_noticed_and_made_again_by_the_next_connection,
    an_unroutable_message_ends_the_connection_and_is_never_confirmed
);
