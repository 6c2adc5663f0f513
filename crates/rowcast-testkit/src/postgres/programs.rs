//! PostgreSQL's programs, found and run as the user that they insist on.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, geteuid};

/// Where Debian keeps the programs, in a folder a version.
const VERSIONS: &str = "/usr/lib/postgresql";

/// The server refuses to be root; Debian's package has made this user for it.
const USER: &str = "postgres";

/// The folder of the newest version's programs.
pub(super) fn programs() -> Result<PathBuf> {
    let versions =
        std::fs::read_dir(VERSIONS).with_context(|| format!("looking for PostgreSQL in {VERSIONS}; see scripts/install-tools"))?;
    versions
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let version: u32 = path.file_name()?.to_str()?.parse().ok()?;
            path.join("bin/initdb").exists().then_some((version, path.join("bin")))
        })
        .max()
        .map(|(_, path)| path)
        .with_context(|| format!("no server in {VERSIONS}; see scripts/install-tools"))
}

/// The server's user and group where the tests run as root.
pub(super) fn other_user() -> Result<Option<(u32, u32)>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let number = |option| {
        let output = Command::new("id").args([option, USER]).output().context("running id")?;
        String::from_utf8_lossy(&output.stdout).trim().parse::<u32>().with_context(|| format!("there is no user {USER}"))
    };
    Ok(Some((number("-u")?, number("-g")?)))
}

/// Program and first arguments that run `program` as the server's user, in the same process.
pub(super) fn as_user(program: &Path) -> Result<(PathBuf, Vec<OsString>)> {
    Ok(match other_user()? {
        None => (program.to_owned(), Vec::new()),
        Some((uid, gid)) => {
            let arguments = [format!("--reuid={uid}"), format!("--regid={gid}"), "--init-groups".into(), "--".into()];
            (PathBuf::from("setpriv"), arguments.into_iter().map(OsString::from).chain([program.as_os_str().to_owned()]).collect())
        }
    })
}

/// A file that only the server's user may read.
pub(super) fn hand_over(file: &Path) -> Result<()> {
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600))?;
    if let Some((uid, gid)) = other_user()? {
        chown(file, Some(uid), Some(gid))?;
    }
    Ok(())
}

pub(super) fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("running {command:?}"))?;
    if !output.status.success() {
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("{command:?} failed with {}: {stdout}{stderr}", output.status);
    }
    Ok(())
}

pub(super) fn append(file: &Path, text: &str) -> Result<()> {
    let mut file = std::fs::File::options().append(true).open(file).with_context(|| format!("opening {}", file.display()))?;
    Ok(file.write_all(text.as_bytes())?)
}

/// Copies a folder with its owners and permissions.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").args(["-a", "--"]).args([from, to]))
}

/// The processes that `parent` has started.
pub(super) fn children(parent: i32) -> Result<Vec<Pid>> {
    let text = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).context("reading the server's children")?;
    Ok(text.split_whitespace().filter_map(|id| Pid::from_raw(id.parse().ok()?)).collect())
}
