//! The replication connection at work: a task that reads ahead, within bounds, and keeps the server informed, whether anybody takes
//! what was read or not.

use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

use super::wire::{Connection, Fault, Frame};

/// How much is read ahead; one message may be larger.
const AHEAD_BYTES: usize = 512 * 1024;
/// How often the server hears of us, and is asked how far it is. It would end the connection after `wal_sender_timeout` without a word,
/// which is set where the connection is made.
const STATUS_EVERY: Duration = Duration::from_secs(1);
/// How long a server may be silent that was asked to answer. While it goes through a large transaction that concerns none of our tables
/// it answers nothing, and after a reconnect it would begin that anew. A server that is gone is found out by the connection itself.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(3600);
/// How often a silence is said.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// How long an orderly end may take.
const END_PATIENCE: Duration = Duration::from_secs(2);

/// What the task is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wish {
    /// The server may forget what was committed before this LSN.
    confirmed: u64,
    /// Whether the stream is to end.
    end: bool,
}

/// A running stream. Dropping it ends the connection.
#[derive(Debug)]
pub(super) struct Feed {
    frames: mpsc::Receiver<Result<Vec<Frame>, Fault>>,
    wish: watch::Sender<Wish>,
    task: JoinHandle<()>,
}

impl Feed {
    /// Takes over a connection on which the stream has begun at `from`.
    pub fn start(connection: Connection, from: u64) -> Feed {
        let (sender, frames) = mpsc::channel(1);
        let (wish, wishes) = watch::channel(Wish { confirmed: from, end: false });
        let task = tokio::spawn(async move {
            let now = Instant::now();
            let mut pump = Pump { connection, ahead: Vec::new(), bytes: 0, received: from, heard: now, said: now, wishes };
            if let Err(fault) = pump.run(&sender).await {
                // Whoever would have taken it may have gone.
                drop(sender.send(Err(fault)).await);
            }
        });
        Feed { frames, wish, task }
    }

    /// What comes next. Cancel safe.
    pub async fn frames(&mut self) -> Result<Vec<Frame>, Fault> {
        self.frames.recv().await.unwrap_or_else(|| Err(Fault::Lost("the stream is over".to_owned())))
    }

    /// The same, if it is there already.
    pub fn frames_at_once(&mut self) -> Option<Result<Vec<Frame>, Fault>> {
        self.frames.try_recv().ok()
    }

    /// The server may forget what was committed before this LSN.
    pub fn confirm(&self, confirmed: u64) {
        self.wish.send_if_modified(|wish| {
            let newer = confirmed > wish.confirmed;
            wish.confirmed = wish.confirmed.max(confirmed);
            newer
        });
    }

    /// Ends the stream; what was confirmed last is known to the server then, if it can be reached.
    pub async fn end(mut self) {
        self.wish.send_modify(|wish| wish.end = true);
        // The task may wait for somebody to take what it has read.
        self.frames.close();
        if timeout(2 * END_PATIENCE, &mut self.task).await.is_err() {
            tracing::debug!("the replication stream did not end in time");
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// That the server has said nothing for too long.
pub(super) fn silent() -> Fault {
    Fault::Lost(format!("the server has said nothing for {} s", SILENCE_MAX.as_secs()))
}

struct Pump {
    connection: Connection,
    /// What was read and not taken.
    ahead: Vec<Frame>,
    bytes: usize,
    /// Up to where the server has told of its log.
    received: u64,
    /// When it last said anything.
    heard: Instant,
    /// When its silence was said last.
    said: Instant,
    wishes: watch::Receiver<Wish>,
}

impl Pump {
    async fn run(&mut self, sender: &mpsc::Sender<Result<Vec<Frame>, Fault>>) -> Result<(), Fault> {
        let mut next_status = Instant::now();
        // Some may have come with the answer that the stream begins, and after an error nothing more comes.
        self.take_frames().await?;
        loop {
            let wanting = self.bytes < AHEAD_BYTES;
            tokio::select! {
                biased;
                changed = self.wishes.changed() => {
                    let wish = *self.wishes.borrow_and_update();
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.status(false).await?;
                    next_status = Instant::now() + STATUS_EVERY;
                    if wish.end {
                        return self.connection.end_replication(END_PATIENCE).await;
                    }
                }
                () = sleep_until(next_status) => {
                    next_status = Instant::now() + STATUS_EVERY;
                    if wanting && self.heard.elapsed() > SILENCE_MAX {
                        return Err(silent());
                    }
                    if wanting && self.heard.elapsed().min(self.said.elapsed()) > SAY_EVERY {
                        self.said = Instant::now();
                        tracing::info!(
                            "the server has said nothing for {} s; it may be going through a large transaction of other tables",
                            self.heard.elapsed().as_secs()
                        );
                    }
                    self.status(true).await?;
                }
                permit = sender.reserve(), if !self.ahead.is_empty() => {
                    let Ok(permit) = permit else { return Ok(()) };
                    self.bytes = 0;
                    permit.send(Ok(std::mem::take(&mut self.ahead)));
                }
                filled = self.connection.fill(), if wanting => {
                    filled?;
                    self.heard = Instant::now();
                    self.take_frames().await?;
                }
            }
            if !wanting {
                // What is not read cannot be heard.
                self.heard = Instant::now();
            }
        }
    }

    async fn take_frames(&mut self) -> Result<(), Fault> {
        while let Some(frame) = self.connection.frame()? {
            match &frame {
                Frame::Data(data) => self.bytes += data.len() + 64,
                Frame::Alive { end, reply } => {
                    self.received = self.received.max(*end);
                    if *reply {
                        self.status(false).await?;
                    }
                    // Only the newest of several in a row says anything.
                    if let Some(last @ Frame::Alive { .. }) = self.ahead.last_mut() {
                        *last = frame;
                        continue;
                    }
                }
            }
            self.ahead.push(frame);
        }
        Ok(())
    }

    async fn status(&mut self, answer: bool) -> Result<(), Fault> {
        let confirmed = self.wishes.borrow().confirmed;
        self.connection.confirm(self.received, confirmed, answer).await
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_came_together_with_the_streams_beginning_is_heard_although_nothing_follows() {
        let (here, mut there) = tokio::io::duplex(1 << 20);
        let mut connection = Connection::new(Box::new(here));
        there.write_all(b"W\0\0\0\x07\0\0\0E\0\0\0\x19SERROR\0C42704\0Mgone\0\0").await.unwrap();
        connection.start_replication("", Duration::from_secs(1)).await.unwrap();
        let mut feed = Feed::start(connection, 0);
        assert!(matches!(feed.frames().await, Err(fault) if fault.code() == Some("42704")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_may_be_silent_for_half_an_hour_but_not_for_ever() {
        let (here, mut there) = tokio::io::duplex(1 << 20);
        let mut feed = Feed::start(Connection::new(Box::new(here)), 0);
        sleep(Duration::from_secs(1800)).await;
        let mut alive = b"d\0\0\0\x16k".to_vec();
        alive.extend([0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        there.write_all(&alive).await.unwrap();
        assert_eq!(feed.frames().await, Ok(vec![Frame::Alive { end: 9, reply: false }]));
        let begun = Instant::now();
        assert_eq!(feed.frames().await, Err(silent()));
        assert!(begun.elapsed() >= SILENCE_MAX);
    }
}
