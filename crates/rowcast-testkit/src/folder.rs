//! Temporary folders that go with the test, even if it is killed, and even where they belong to a `static` that is never dropped.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

/// Waits for the end of its input and removes the folder. Servers that die at the same moment may still write: it tries again
/// for ten seconds.
const SWEEPER: &str = r#"
read -r _
for _ in $(seq 100); do
    rm -rf -- "$1" 2>/dev/null && exit 0
    sleep 0.1
done
"#;

/// A folder in the system's place for temporary ones.
#[derive(Debug)]
pub struct Folder {
    path: std::path::PathBuf,
    sweeper: Child,
}

impl Folder {
    /// Makes one whose name begins with `prefix`.
    pub fn new(prefix: &str) -> Result<Folder> {
        let path = tempfile::Builder::new().prefix(prefix).tempdir()?.keep();
        let sweeper = Command::new("sh")
            .args(["-c", SWEEPER, "sweeper"])
            .arg(&path)
            .stdin(Stdio::piped())
            // Ctrl-C is for the test.
            .process_group(0)
            .spawn()
            .context("starting sh")?;
        Ok(Folder { path, sweeper })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(self.sweeper.stdin.take());
        // A folder that stays behind is no reason to fail a test that has passed.
        drop(self.sweeper.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_goes_with_everything_in_it() {
        let folder = Folder::new("rowcast-folder-").unwrap();
        let path = folder.path().to_owned();
        std::fs::write(path.join("file"), "text").unwrap();
        drop(folder);
        assert!(!path.exists());
    }
}
