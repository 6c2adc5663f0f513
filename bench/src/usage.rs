//! What processes have used, by the kernel's account.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;

/// Microseconds since the epoch.
pub fn now_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// The fields of a process's line behind its name, which may hold blanks.
fn stat(pid: &str) -> Option<Vec<u64>> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = line.rsplit_once(") ")?;
    Some(rest.split(' ').map(|field| field.trim().parse().unwrap_or(0)).collect())
}

/// Seconds in user and system mode.
fn cpu_s(stat: &[u64]) -> f64 {
    // Fields 14 and 15 of the whole line.
    (stat[11] + stat[12]) as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// Processor seconds of a process so far.
pub fn process_cpu_s(pid: u32) -> anyhow::Result<f64> {
    Ok(cpu_s(&stat(&pid.to_string()).context("the process is gone")?))
}

/// Processor seconds of all processes of a group.
pub fn group_cpu_s(group: i32) -> anyhow::Result<f64> {
    let group = u64::try_from(group)?;
    let mut total = 0.0;
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) else { continue };
        // One that ended meanwhile is none of the servers.
        total += stat(pid).filter(|stat| stat[2] == group).map_or(0.0, |stat| cpu_s(&stat));
    }
    Ok(total)
}

/// The most memory that a process ever had in use, in MiB.
pub fn peak_mib(pid: u32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("the kernel does not tell VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}
