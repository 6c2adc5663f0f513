//! The program under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// `rowcast` as cargo builds it, beside the tests' own binaries.
static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let status =
        Command::new(env!("CARGO")).args(["build", "--quiet", "--workspace", "--bin", "rowcast"]).current_dir(workspace()).status();
    assert!(status.expect("cargo runs").success(), "rowcast-cli does not build");
    let tests = std::env::current_exe().expect("a test has a path");
    let profile = tests.parent().and_then(Path::parent).expect("tests stand in deps");
    let binary = profile.join("rowcast");
    assert!(binary.is_file(), "{} was not built", binary.display());
    binary
});

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a member of the workspace")
}

/// Where `rowcast` is; the first call builds it.
pub fn rowcast() -> &'static Path {
    &BINARY
}
