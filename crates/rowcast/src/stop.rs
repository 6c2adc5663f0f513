//! The wish to stop, passed down to whoever runs. Dropping the [`Stopper`] is the wish, too.

use std::future::Future;

use tokio::sync::watch;

/// The end that asks.
#[derive(Debug)]
pub struct Stopper(watch::Sender<bool>);

/// The end that is asked.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

/// A pair of the two.
pub fn channel() -> (Stopper, Stop) {
    let (sender, receiver) = watch::channel(false);
    (Stopper(sender), Stop(receiver))
}

impl Stopper {
    /// Asks everybody to finish what is in hand.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// The wish is uttered when `event` has happened: `Stop::when(tokio::signal::ctrl_c())`. Has to be called in a runtime.
    pub fn when(event: impl Future + Send + 'static) -> Stop {
        let (stopper, stop) = channel();
        tokio::spawn(async move {
            drop(event.await);
            stopper.stop();
        });
        stop
    }

    /// Waits for the wish. Cancel safe.
    pub async fn requested(&mut self) {
        // An error means that the other end was dropped.
        drop(self.0.wait_for(|stop| *stop).await);
    }

    /// Whether it was uttered.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}
