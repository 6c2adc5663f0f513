//! The wish to stop, passed down to whoever runs. Dropping the [`Stopper`] is the wish, too.

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
