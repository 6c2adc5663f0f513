//! Publisher and consumer, each on a thread with a runtime of its own, so that neither waits for the other's work.

use std::future::Future;
use std::panic::resume_unwind;
use std::thread::JoinHandle;

use anyhow::Context;
use rowcast::stop::{self, Stop, Stopper};
use tokio::sync::oneshot;

use crate::signals::Signals;

/// One half at work.
pub struct Half {
    name: &'static str,
    stopper: Stopper,
    /// Told when the thread's work is over, however it ended; taken once it was.
    over: Option<oneshot::Receiver<()>>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Half {
    /// Starts `work` on a thread.
    pub fn start<F, W>(name: &'static str, work: W) -> anyhow::Result<Half>
    where
        F: Future<Output = anyhow::Result<()>>,
        W: FnOnce(Stop) -> F + Send + 'static,
    {
        let (stopper, stop) = stop::channel();
        let (sender, over) = oneshot::channel::<()>();
        let run = move || {
            // Dropped at the end of the thread's work, a panic included.
            let _sender = sender;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
            runtime.block_on(work(stop))
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run).with_context(|| format!("cannot start the {name}"))?;
        Ok(Half { name, stopper, over: Some(over), thread })
    }

    /// Asks it to finish what is in hand.
    pub fn stop(&self) {
        self.stopper.stop();
    }

    /// Waits for its end. Cancel safe.
    pub async fn over(&mut self) {
        if let Some(over) = &mut self.over {
            // The sender is only ever dropped.
            drop(over.await);
            self.over = None;
        }
    }

    /// What it ended with.
    pub async fn result(mut self) -> anyhow::Result<()> {
        self.over().await;
        match self.thread.join() {
            Ok(result) => result,
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// Waits for a signal, or for the end of a half. Returns whether it was a signal.
pub async fn until_one_ends(halves: &mut [Half], signals: &mut Signals) -> bool {
    let over = async {
        match halves {
            [] => std::future::pending().await,
            [half] => half.over().await,
            [left, right, ..] => tokio::select! {
                () = left.over() => {}
                () = right.over() => {}
            },
        }
    };
    tokio::select! {
        () = signals.next() => true,
        () = over => false,
    }
}

/// Stops all of them and waits until they have finished what they have in hand. The first error is returned, others are logged.
pub async fn stop_all(halves: Vec<Half>) -> anyhow::Result<()> {
    halves.iter().for_each(Half::stop);
    let mut first = Ok(());
    for half in halves {
        let name = half.name;
        match half.result().await {
            Err(error) if first.is_ok() => first = Err(error),
            Err(error) => tracing::error!("{name}: {error:#}"),
            Ok(()) => {}
        }
    }
    first
}
