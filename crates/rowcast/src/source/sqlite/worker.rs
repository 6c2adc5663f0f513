//! The thread that owns the connection: it takes commands one by one and, while somebody waits for the next portion, looks
//! for commits.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::super::{Chunk, ChunkLimits, Error, Portion, PositionRecord, Start};
use super::SqliteSettings;
use super::error::{Failure, patiently};
use super::session::Session;
use super::watch::{Pace, WakeFlag, Watch, listen_again};
use crate::change::{Bound, Position};

/// Where an answer goes.
type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What the thread is told.
#[derive(Debug)]
pub(super) enum Command {
    Begin(Option<PositionRecord>, Reply<Start>),
    Next(Reply<Portion>),
    /// `untaken`: a portion was asked for, and its answer will be thrown away.
    Abandon {
        untaken: bool,
        reply: Reply<()>,
    },
    Chunk {
        table: usize,
        after: Option<Bound>,
        limits: ChunkLimits,
        reply: Reply<Option<Chunk>>,
    },
    Rows {
        table: usize,
        pks: Vec<String>,
        limits: ChunkLimits,
        reply: Reply<(Chunk, usize)>,
    },
    Forget(Position, Reply<()>),
    /// Something happened to the files.
    Wake,
    /// Nobody is there any more.
    Stop,
}

/// The pause between two reads is as long as the read was, within these bounds.
const PAUSE_LEAST: Duration = Duration::from_micros(200);
const PAUSE_MOST: Duration = Duration::from_millis(2);

/// How long somebody else's lock may keep the thread from writing down, at its end, what may be forgotten.
const FAREWELL: Duration = Duration::from_millis(500);

/// Starts the thread; it ends when it is told to stop.
pub(super) fn start(settings: SqliteSettings) -> std::io::Result<Sender<Command>> {
    let (sender, commands) = mpsc::channel();
    let worker = Worker {
        settings,
        wake: sender.clone(),
        woken: Arc::new(AtomicBool::new(false)),
        watch: None,
        opened_before: false,
        session: None,
        waiting: None,
        last_complete_from: None,
        pace: Pace::new(),
        dirty: true,
        locked_since: None,
        read_began: Instant::now(),
    };
    std::thread::Builder::new().name("rowcast-sqlite".to_owned()).spawn(move || worker.run(&commands))?;
    Ok(sender)
}

struct Worker {
    settings: SqliteSettings,
    /// For the watching thread.
    wake: Sender<Command>,
    woken: WakeFlag,
    /// Whether a history was opened since the thread began.
    opened_before: bool,
    watch: Option<Watch>,
    session: Option<Session>,
    /// Who waits for the next portion.
    waiting: Option<Reply<Portion>>,
    /// Where the session stood before the complete portion that was answered last; that answer may never be taken.
    last_complete_from: Option<i64>,
    pace: Pace,
    /// Whether there may be something to read even if `data_version` has not moved.
    dirty: bool,
    /// Since when somebody else's lock has kept us out.
    locked_since: Option<Instant>,
    read_began: Instant,
}

impl Worker {
    fn run(mut self, commands: &Receiver<Command>) {
        loop {
            let command = match self.wait() {
                Some(wait) => commands.recv_timeout(wait),
                None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match command {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return self.leave(),
                Ok(command) => self.handle(command),
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.look();
            self.trim();
        }
    }

    /// How long there is nothing to do without a command.
    fn wait(&self) -> Option<Duration> {
        let trim = self.session.as_ref().filter(|session| session.read.is_none()).and_then(Session::trim_due);
        let look = self.waiting.as_ref().map(|_| self.pace.wait());
        // A trim that found the database locked does not come again at once.
        let trim = trim.map(|trim| trim.max(PAUSE_MOST));
        [trim, look].into_iter().flatten().min()
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Begin(record, reply) => self.answer(reply, |worker| worker.begin(record.as_ref())),
            Command::Next(reply) => {
                self.last_complete_from = None;
                self.waiting = Some(reply);
            }
            Command::Abandon { untaken, reply } => self.answer(reply, |worker| worker.abandon(untaken)),
            Command::Chunk { table, after, limits, reply } => self.answer(reply, |worker| worker.chunk(table, after.as_ref(), limits)),
            Command::Rows { table, pks, limits, reply } => self.answer(reply, |worker| {
                worker.read("reading single rows", |session| {
                    session.on_snapshot(|session, as_of| session.read_rows(table, &pks, limits, as_of))
                })
            }),
            Command::Forget(upto, reply) => self.answer(reply, |worker| worker.session()?.forget(upto)),
            Command::Wake => {
                listen_again(&self.woken);
                self.pace.event();
            }
            Command::Stop => {}
        }
    }

    fn answer<T>(&mut self, reply: Reply<T>, work: impl FnOnce(&mut Worker) -> Result<T, Error>) {
        let answer = work(self);
        // Whoever asked may have gone.
        drop(reply.send(answer));
    }

    fn session(&mut self) -> Result<&mut Session, Error> {
        self.session.as_mut().ok_or_else(|| Error::Fatal("the source was used before it began; this is a fault in rowcast".to_owned()))
    }

    fn begin(&mut self, record: Option<&PositionRecord>) -> Result<Start, Error> {
        self.waiting = None;
        self.last_complete_from = None;
        self.session = None;
        self.watch = None;
        let path = &self.settings.path;
        // Once it was there its absence may be the moment in the middle of a restore.
        if !self.opened_before && !path.exists() {
            return Err(Error::Fatal(format!("there is no database file {}; check the path", path.display())));
        }
        let (wake, flag) = (self.wake.clone(), self.woken.clone());
        listen_again(&flag);
        let watching = Watch::start(path, flag, move || wake.send(Command::Wake).is_ok());
        match watching {
            Ok(watch) => self.watch = Some(watch),
            // Without file events the look every few milliseconds remains.
            Err(error) => tracing::warn!(path = %path.display(), %error, "no file events; commits are noticed a little later"),
        }
        let (session, start) =
            Session::begin(&self.settings, record, self.opened_before).map_err(|failure| failure.explain(path, "opening its history"))?;
        self.session = Some(session);
        self.opened_before = true;
        self.dirty = true;
        self.locked_since = None;
        self.pace = Pace::new();
        Ok(start)
    }

    fn abandon(&mut self, untaken: bool) -> Result<(), Error> {
        let answered = self.waiting.take().is_none();
        let back_to = self.last_complete_from.take().filter(|_| untaken && answered);
        self.dirty = true;
        let Some(session) = &mut self.session else { return Ok(()) };
        if let Some(shipped) = back_to {
            session.shipped = shipped;
        }
        session.abandon().map_err(|failure| failure.explain(&self.settings.path, "ending a read"))
    }

    fn chunk(&mut self, table: usize, after: Option<&Bound>, limits: ChunkLimits) -> Result<Option<Chunk>, Error> {
        self.read("reading existing rows", |session| {
            if let Some(bound) = after
                && !session.knows(table, bound)?
            {
                return Ok(None);
            }
            session.on_snapshot(|session, as_of| session.read_chunk(table, after, limits, as_of)).map(Some)
        })
    }

    /// A read of its own, tried again while the database is locked.
    fn read<T>(&mut self, doing: &str, mut work: impl FnMut(&mut Session) -> Result<T, Failure>) -> Result<T, Error> {
        let patience = self.settings.busy_timeout;
        let session = self.session()?;
        let outcome = patiently(patience, || work(session));
        outcome.map_err(|failure| failure.explain(&self.settings.path, doing))
    }

    /// Answers whoever waits for the next portion, if there is one.
    fn look(&mut self) {
        if self.waiting.is_none() {
            return;
        }
        match self.next_portion() {
            Ok(None) => self.pace.nothing(),
            Ok(Some(portion)) => {
                self.locked_since = None;
                self.reply(Ok(portion));
            }
            Err(failure) => {
                self.dirty = true;
                let since = *self.locked_since.get_or_insert_with(Instant::now);
                if failure.is_lock() && since.elapsed() < self.settings.busy_timeout {
                    // Not yet; whoever holds the lock is about to commit.
                    self.pace.nothing();
                } else {
                    self.locked_since = None;
                    self.reply(Err(failure.explain(&self.settings.path, "reading the changelog")));
                }
            }
        }
    }

    fn reply(&mut self, answer: Result<Portion, Error>) {
        if let Some(reply) = self.waiting.take() {
            // An answer that nobody takes is one that was abandoned.
            drop(reply.send(answer));
        }
    }

    fn next_portion(&mut self) -> Result<Option<Portion>, Failure> {
        let dirty = self.dirty;
        let early = self.pace.is_early();
        let session = self
            .session
            .as_mut()
            .ok_or_else(|| Error::Fatal("the source was used before it began; this is a fault in rowcast".to_owned()))?;
        if session.read.is_none() {
            if early || !(session.has_news()? || dirty) {
                return Ok(None);
            }
            // From here on the news are ours to deliver, also if a lock keeps us from it.
            self.dirty = true;
            self.read_began = Instant::now();
            let opened = session.open_read()?;
            self.dirty = false;
            self.locked_since = None;
            if !opened {
                return Ok(None);
            }
        }
        let from = session.shipped;
        let portion = session.portion()?;
        if matches!(portion, Portion::Changes { complete: true, .. }) {
            self.last_complete_from = Some(from);
            self.pace.pause(self.read_began.elapsed().clamp(PAUSE_LEAST, PAUSE_MOST));
        }
        Ok(Some(portion))
    }

    /// Writes down what may be forgotten, so that the next session does not ship it again.
    fn leave(&mut self) {
        if let Some(session) = &mut self.session
            && let Err(failure) = session.abandon().and_then(|()| patiently(FAREWELL, || session.trim_now()))
        {
            // The next session ships a little more, which does no harm.
            tracing::debug!(path = %self.settings.path.display(), ?failure, "the changelog was not trimmed at the end");
        }
    }

    fn trim(&mut self) {
        let Some(session) = &mut self.session else { return };
        if let Err(failure) = session.trim() {
            // What is wrong with the history is said by the next read; here it only keeps the changelog as it is.
            tracing::debug!(path = %self.settings.path.display(), ?failure, "the changelog was not trimmed");
        }
    }
}
