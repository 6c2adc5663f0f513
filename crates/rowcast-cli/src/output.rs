//! Standard output, which belongs to data.

use std::io::{ErrorKind, Write};

/// Prints to stdout, without colours where nobody would see them. A reader that has gone has read enough.
pub fn print(text: &str) -> anyhow::Result<()> {
    try_print(text).map(drop)
}

/// The same; says whether anybody still reads.
pub fn try_print(text: &str) -> anyhow::Result<bool> {
    let mut stdout = anstream::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(anyhow::Error::from(error).context("cannot write to standard output")),
    }
}
