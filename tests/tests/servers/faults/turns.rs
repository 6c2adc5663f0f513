//! One fault after another, drawn from a seed: what can be done to any pipeline.

use lapin::options::{QueueDeleteOptions, QueuePurgeOptions};
use rand::RngExt;
use rand::rngs::StdRng;

use super::half::Half;
use super::watcher;
use super::world::{PARTITIONS, Route, World};

/// What a consumer says of each partition that has no checkpoint.
const NO_CHECKPOINT: &str = "no checkpoint: every table";

/// A pipeline and its two processes while one fault follows another.
pub struct Turns {
    pub world: World,
    pub random: StdRng,
    publisher: Option<Half>,
    consumer: Option<Half>,
    /// How the publisher reaches the database, where it is not the straight way.
    source: Option<String>,
    /// How many faults there were: the end of the names of what was started since.
    turn: usize,
}

impl Turns {
    /// Starts both halves and waits until all is in the cache.
    pub fn begin(world: World, source: Option<String>) -> Turns {
        let random = world.random();
        let mut turns = Turns { world, random, publisher: None, consumer: None, source, turn: 0 };
        turns.start_publisher("publisher", &turns.configuration());
        turns.consumer = Some(turns.world.consumer("consumer-0"));
        turns.world.wait_until_settled();
        turns
    }

    /// How many turns there are: `ROWCAST_FAULTS`, or one of each kind.
    pub fn count(kinds: usize) -> usize {
        std::env::var("ROWCAST_FAULTS").map_or(kinds, |faults| faults.parse().expect("ROWCAST_FAULTS is a number"))
    }

    /// The next turn, once something was written; which of so many kinds of fault it has. The first ones are one of every kind.
    pub fn next(&mut self, kinds: usize) -> usize {
        self.world.writer.wait_for_more(self.random.random_range(20..60));
        self.turn += 1;
        let kind = if self.turn <= kinds { self.turn - 1 } else { self.random.random_range(0..kinds) };
        println!("{}: turn {} has a fault of kind {kind}", watcher::now(), self.turn);
        kind
    }

    /// The end of a turn. Half of the faults strike while the one before is still being made up for.
    pub fn end(&mut self) {
        if self.random.random_bool(0.5) {
            self.world.wait_until_settled();
        }
    }

    /// Everything is as it should be in the end.
    pub fn judge(self) {
        self.world.writer.wait_for_more(50);
        let (mut publisher, mut consumer) = (self.publisher.expect("it runs"), self.consumer.expect("it runs"));
        self.world.judge(&mut [&mut publisher, &mut consumer]);
    }

    /// Which turn it is.
    pub fn number(&self) -> usize {
        self.turn
    }

    /// The configuration that the publisher has unless it is given another one.
    pub fn configuration(&self) -> String {
        self.world.configuration_by(Route { source: self.source.as_deref(), ..Route::default() })
    }

    /// Another publisher begins where the one before has left.
    pub fn start_publisher(&mut self, name: &str, configuration: &str) {
        assert!(self.publisher.is_none(), "one publisher at a time");
        self.publisher = Some(self.world.half_configured("publish", &format!("{name}-{}", self.turn), configuration));
    }

    /// The publisher leaves in an orderly way.
    pub fn let_publisher_leave(&mut self) {
        self.publisher.take().expect("it runs").leave();
    }

    // Faults.

    /// `kill -9` of the publisher.
    pub fn kill_publisher(&mut self) {
        self.publisher.take().expect("it runs").kill();
        self.start_publisher("publisher", &self.configuration());
    }

    /// `kill -9` of the consumer.
    pub fn kill_consumer(&mut self) {
        let holders = self.world.holders();
        self.consumer.take().expect("it runs").kill();
        self.consumer = Some(self.world.consumer(&format!("consumer-{}", self.turn)));
        self.world.wait_until_taken_over(&holders);
    }

    /// Redis loses everything.
    pub fn flush_redis(&mut self) {
        let gone = self.world.said(NO_CHECKPOINT);
        self.world.send_redis_back(async |redis| redis.query::<()>(&["FLUSHALL"]).await);
        self.world.wait_until_said(NO_CHECKPOINT, gone + PARTITIONS);
    }

    /// Redis goes back to what it held a while ago.
    pub fn roll_redis_back(&mut self) {
        let dump = self.world.strike_redis(async |redis| redis.save().await);
        self.world.writer.wait_for_more(30);
        self.world.send_redis_back(async |redis| redis.roll_back(&dump).await);
    }

    /// One partition's checkpoint is removed.
    pub fn lose_checkpoint(&mut self) {
        // One that is there.
        self.world.wait_until_settled();
        let lost = self.world.said(NO_CHECKPOINT);
        self.world.remove_checkpoint(self.random.random_range(1..=PARTITIONS));
        self.world.wait_until_said(NO_CHECKPOINT, lost + 1);
    }

    /// What waits in the queues is thrown away, and one queue itself.
    pub fn lose_messages(&mut self) {
        let world = &self.world;
        let (connection, channel) = world.channel();
        let queue = |number| world.queue(&format!("{number}of{PARTITIONS}"));
        for number in 1..=PARTITIONS {
            world.block_on(channel.queue_purge(queue(number).into(), QueuePurgeOptions::default())).expect("a purge");
        }
        let deleted = queue(self.random.random_range(1..=PARTITIONS));
        world.block_on(channel.queue_delete(deleted.into(), QueueDeleteOptions::default())).expect("it is deleted");
        drop(connection);
    }

    /// The columns of a table come in another order for a while. `words` are what a consumer says of its resync.
    pub fn reorder(&mut self, table: &str, columns: &[&str], words: &str) {
        let configuration = self.configuration();
        let mut columns: Vec<String> = columns.iter().map(|name| format!("{name:?}")).collect();
        let by = self.random.random_range(1..columns.len());
        columns.rotate_left(by);
        let named = format!("name = {table:?}\n");
        let changed = configuration.replace(&named, &format!("{named}columns = [{}]\n", columns.join(", ")));
        assert_ne!(changed, configuration);
        let resyncs = self.world.said(words);
        self.let_publisher_leave();
        self.start_publisher("publisher-reordered", &changed);
        self.world.wait_until_said(words, resyncs + PARTITIONS);
        self.let_publisher_leave();
        self.start_publisher("publisher", &configuration);
    }
}
