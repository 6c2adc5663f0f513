//! The program under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// `rowcast` as cargo builds it, beside the tests' own binaries.
///
/// The tests of the command line bring the binary with them, so after `cargo test --workspace` nothing is built here. With any
/// other selection of packages, features would differ and half the tree would be built again.
static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
    let mut build = Command::new(env!("CARGO"));
    build.args(["test", "--quiet", "--workspace", "--test", "cli", "--no-run"]).current_dir(workspace());
    // Build scripts look at what cargo tells of the package under test, and would run again.
    for (name, _) in std::env::vars_os() {
        let told = name.to_str().is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"));
        if told {
            build.env_remove(name);
        }
    }
    let status = build.status();
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
