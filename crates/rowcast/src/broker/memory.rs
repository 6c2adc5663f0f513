//! A broker inside one process: for the demo, for tests of logic, and for the seeded simulation.
//!
//! It keeps the promises of the real one (order, single active consumer, redelivery at the head, exclusivity) and uses neither
//! clock nor chance, so that a simulation over it replays exactly.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::{Address, Broker, Delivery, Error, Event, Message, PartitionQueue, Publishing, QueueState, Ticket};
use crate::change::Partition;

/// A broker for one pipeline in this process. Clones share its queues.
#[derive(Clone, Debug)]
pub struct MemoryBroker {
    shared: Arc<Shared>,
    partitions: u16,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Wakes everybody who waits for anything; each looks again.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    queues: BTreeMap<Partition, Queue>,
    control: VecDeque<Vec<u8>>,
    record: Option<Vec<u8>>,
    dead: Vec<Vec<u8>>,
    /// The connection that holds the exclusive queue.
    publisher: Option<u64>,
    /// The next connection's number.
    connections: u64,
    /// Connections with lower numbers are over.
    cut_below: u64,
    /// Whether messages are taken for now.
    blocked: bool,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Vec<u8>>,
    /// Connections in the order in which they came; the first is active.
    consumers: VecDeque<u64>,
    /// What was delivered and not acked, with the connection it was delivered on, in order.
    unacked: VecDeque<(u64, Delivery)>,
}

impl Queue {
    /// The broker takes a consumer for gone: what it had in hand returns to the head, in order.
    fn part_with(&mut self, gone: impl Fn(u64) -> bool) {
        self.consumers.retain(|connection| !gone(*connection));
        let (returned, kept) = std::mem::take(&mut self.unacked).into_iter().partition(|(connection, _)| gone(*connection));
        self.unacked = kept;
        let returned: VecDeque<(u64, Delivery)> = returned;
        for (_, delivery) in returned.into_iter().rev() {
            self.waiting.push_front(delivery.body);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the queues as they were between two operations, which is a state like any other.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn wait<T>(&self, mut look: impl FnMut(&mut State) -> Result<Option<T>, Error>) -> Result<T, Error> {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = look(&mut self.lock())? {
                return Ok(found);
            }
            changed.await;
        }
    }
}

fn lost() -> Error {
    Error::Lost("the memory broker cut the connection".to_owned())
}

impl MemoryBroker {
    /// An empty broker with this many partitions.
    pub fn new(partitions: u16) -> MemoryBroker {
        MemoryBroker { shared: Arc::default(), partitions }
    }

    /// The same broker for a layout with another number of partitions.
    pub fn with_partitions(&self, partitions: u16) -> MemoryBroker {
        MemoryBroker { shared: self.shared.clone(), partitions }
    }

    /// Looks into a partition's queue, and does with it what an operator can do to a real one.
    pub fn with_queue<T>(&self, partition: Partition, look: impl FnOnce(&mut VecDeque<Vec<u8>>) -> T) -> T {
        let found = look(&mut self.shared.lock().queues.entry(partition).or_default().waiting);
        self.shared.changed.notify_waiters();
        found
    }

    /// Looks into the queue of requests to the publisher.
    pub fn with_control<T>(&self, look: impl FnOnce(&mut VecDeque<Vec<u8>>) -> T) -> T {
        let found = look(&mut self.shared.lock().control);
        self.shared.changed.notify_waiters();
        found
    }

    /// The dead letters so far.
    pub fn dead_letters(&self) -> Vec<Vec<u8>> {
        self.shared.lock().dead.clone()
    }

    /// Raises or ends the alarm in which no messages are taken; what is handed over meanwhile waits, unconfirmed.
    pub fn block(&self, blocked: bool) {
        self.shared.lock().blocked = blocked;
        self.shared.changed.notify_waiters();
    }

    /// Cuts every connection; deliveries that were not acked return to their queues.
    pub fn cut(&self) {
        let mut state = self.shared.lock();
        state.cut_below = state.connections;
        state.publisher = None;
        state.queues.values_mut().for_each(|queue| queue.part_with(|_| true));
        drop(state);
        self.shared.changed.notify_waiters();
    }

    /// Cuts every connection and loses everything, like a broker that lost its disk.
    pub fn wipe(&self) {
        let mut state = self.shared.lock();
        *state = State { connections: state.connections, cut_below: state.connections, ..State::default() };
        drop(state);
        self.shared.changed.notify_waiters();
    }

    /// Lets another publisher in although the present one still publishes: what happens when a broker takes a publisher for
    /// dead whose messages are still under way.
    pub fn forget_publisher(&self) {
        self.shared.lock().publisher = None;
        self.shared.changed.notify_waiters();
    }
}

impl Broker for MemoryBroker {
    type Publishing = MemoryPublishing;
    type Queue = MemoryQueue;

    async fn publishing(&self) -> Result<MemoryPublishing, Error> {
        let mut state = self.shared.lock();
        if state.publisher.is_some() {
            return Err(Error::Standby("another publisher of this pipeline is at work".to_owned()));
        }
        let connection = state.connections;
        state.connections += 1;
        state.publisher = Some(connection);
        Ok(MemoryPublishing {
            shared: self.shared.clone(),
            partitions: self.partitions,
            connection,
            tickets: 0,
            waiting: VecDeque::new(),
            confirmed: VecDeque::new(),
            told_blocked: false,
            requests: 0,
            unsettled: BTreeMap::new(),
        })
    }

    async fn queue(&self, partition: Partition) -> Result<MemoryQueue, Error> {
        let mut state = self.shared.lock();
        let connection = state.connections;
        state.connections += 1;
        state.queues.entry(partition).or_default().consumers.push_back(connection);
        Ok(MemoryQueue { shared: self.shared.clone(), connection, partition, tags: 0 })
    }

    async fn remove_layout(&self, of: u16) -> Result<(), Error> {
        self.shared.lock().queues.retain(|partition, _| partition.of != of);
        self.shared.changed.notify_waiters();
        Ok(())
    }

    async fn request(&self, body: Vec<u8>) -> Result<(), Error> {
        self.shared.lock().control.push_back(body);
        self.shared.changed.notify_waiters();
        Ok(())
    }

    async fn inspect(&self) -> Result<Vec<QueueState>, Error> {
        let state = self.shared.lock();
        let look = |partition: Partition| {
            let queue = state.queues.get(&partition);
            QueueState {
                name: partition.to_string(),
                depth: queue.map(|queue| queue.waiting.len() as u64),
                consumers: queue.map_or(0, |queue| queue.consumers.len() as u64),
            }
        };
        Ok(Partition::all(self.partitions).map(look).collect())
    }
}

/// The publisher's connection to a [`MemoryBroker`].
#[derive(Debug)]
pub struct MemoryPublishing {
    shared: Arc<Shared>,
    partitions: u16,
    connection: u64,
    tickets: u64,
    /// Handed over during an alarm.
    waiting: VecDeque<(Ticket, Message)>,
    confirmed: VecDeque<Ticket>,
    /// What the publisher was told last of the alarm.
    told_blocked: bool,
    /// How many requests it was given.
    requests: u64,
    /// Requests by their numbers, which return when this ends.
    unsettled: BTreeMap<u64, Vec<u8>>,
}

impl MemoryPublishing {
    /// Takes what waits, unless there is an alarm.
    fn take_in(&mut self, state: &mut State) {
        if state.blocked {
            return;
        }
        for (ticket, message) in self.waiting.drain(..) {
            match message.to {
                Address::Partition(partition) => state.queues.entry(partition).or_default().waiting.push_back(message.body),
                Address::Record => state.record = Some(message.body),
                Address::Dead => state.dead.push(message.body),
            }
            self.confirmed.push_back(ticket);
        }
    }
}

impl Publishing for MemoryPublishing {
    async fn record(&mut self) -> Result<Option<Vec<u8>>, Error> {
        let state = self.shared.lock();
        if self.connection < state.cut_below { Err(lost()) } else { Ok(state.record.clone()) }
    }

    async fn publish(&mut self, message: Message) -> Result<Ticket, Error> {
        let shared = self.shared.clone();
        let mut state = shared.lock();
        if self.connection < state.cut_below {
            return Err(lost());
        }
        self.tickets += 1;
        self.waiting.push_back((Ticket(self.tickets), message));
        self.take_in(&mut state);
        drop(state);
        shared.changed.notify_waiters();
        Ok(Ticket(self.tickets))
    }

    async fn event(&mut self) -> Result<Event, Error> {
        let shared = self.shared.clone();
        let event = shared.wait(|state| {
            if self.connection < state.cut_below {
                return Err(lost());
            }
            if state.blocked != self.told_blocked {
                self.told_blocked = state.blocked;
                return Ok(Some(if state.blocked { Event::Blocked("an alarm".to_owned()) } else { Event::Unblocked }));
            }
            self.take_in(state);
            if let Some(ticket) = self.confirmed.pop_front() {
                return Ok(Some(Event::Confirmed(ticket)));
            }
            let Some(body) = state.control.pop_front() else { return Ok(None) };
            self.requests += 1;
            self.unsettled.insert(self.requests, body.clone());
            Ok(Some(Event::Control { body, number: self.requests }))
        });
        let event = event.await?;
        // What was taken in just now is there for the consumers.
        self.shared.changed.notify_waiters();
        Ok(event)
    }

    async fn settle(&mut self, number: u64) -> Result<(), Error> {
        if self.connection < self.shared.lock().cut_below {
            return Err(lost());
        }
        let settled = self.unsettled.remove(&number);
        assert!(settled.is_some(), "the request {number} is not open");
        Ok(())
    }

    async fn look_for_queues(&mut self) -> Result<Vec<Partition>, Error> {
        let state = self.shared.lock();
        if self.connection < state.cut_below {
            return Err(lost());
        }
        let consumed = |partition: &Partition| state.queues.get(partition).is_some_and(|queue| !queue.consumers.is_empty());
        Ok(Partition::all(self.partitions).filter(|partition| !consumed(partition)).collect())
    }
}

impl Drop for MemoryPublishing {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if state.publisher == Some(self.connection) {
            state.publisher = None;
        }
        for body in std::mem::take(&mut self.unsettled).into_values().rev() {
            state.control.push_front(body);
        }
        drop(state);
        self.shared.changed.notify_waiters();
    }
}

/// A consumer's connection to one queue of a [`MemoryBroker`].
#[derive(Debug)]
pub struct MemoryQueue {
    shared: Arc<Shared>,
    connection: u64,
    partition: Partition,
    tags: u64,
}

impl MemoryQueue {
    /// The next message if this connection is the active one.
    fn take(&mut self, state: &mut State) -> Result<Option<Delivery>, Error> {
        if self.connection < state.cut_below {
            return Err(lost());
        }
        // A queue that was deleted ends the connection, as a real broker cancels the consumer.
        let queue = state.queues.get_mut(&self.partition).ok_or_else(lost)?;
        if queue.consumers.front() != Some(&self.connection) {
            return Ok(None);
        }
        let Some(body) = queue.waiting.pop_front() else { return Ok(None) };
        self.tags += 1;
        let delivery = Delivery { tag: self.tags, body };
        queue.unacked.push_back((self.connection, delivery.clone()));
        Ok(Some(delivery))
    }

    fn check(&self, state: &State) -> Result<(), Error> {
        if self.connection < state.cut_below { Err(lost()) } else { Ok(()) }
    }
}

impl PartitionQueue for MemoryQueue {
    async fn next(&mut self) -> Result<Delivery, Error> {
        let shared = self.shared.clone();
        shared.wait(|state| self.take(state)).await
    }

    fn ready(&mut self) -> Option<Delivery> {
        let shared = self.shared.clone();
        // An error shows at the next call that waits.
        self.take(&mut shared.lock()).ok().flatten()
    }

    async fn ack(&mut self, tag: u64) -> Result<(), Error> {
        let mut state = self.shared.lock();
        self.check(&state)?;
        let queue = state.queues.get_mut(&self.partition).ok_or_else(lost)?;
        queue.unacked.retain(|(connection, delivery)| *connection != self.connection || delivery.tag > tag);
        Ok(())
    }

    async fn request(&mut self, body: Vec<u8>) -> Result<(), Error> {
        let mut state = self.shared.lock();
        self.check(&state)?;
        state.control.push_back(body);
        drop(state);
        self.shared.changed.notify_waiters();
        Ok(())
    }

    async fn dead_letter(&mut self, body: Vec<u8>) -> Result<(), Error> {
        let mut state = self.shared.lock();
        self.check(&state)?;
        state.dead.push(body);
        Ok(())
    }

    async fn depth(&mut self) -> Result<u64, Error> {
        let state = self.shared.lock();
        self.check(&state)?;
        Ok(state.queues.get(&self.partition).map_or(0, |queue| queue.waiting.len() as u64))
    }

    async fn leave(self) -> Result<(), Error> {
        Ok(())
    }
}

impl Drop for MemoryQueue {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if let Some(queue) = state.queues.get_mut(&self.partition) {
            queue.part_with(|connection| connection == self.connection);
        }
        drop(state);
        self.shared.changed.notify_waiters();
    }
}
