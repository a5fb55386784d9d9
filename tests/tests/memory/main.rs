//! The memory that work takes, each measured in a process of its own.

#![cfg(target_os = "linux")]

mod joining;
mod noise_scale;
mod statistics;
mod store;

use std::process::Command;

const ALONE: &str = "FISHER_TEST_ALONE";
const MIB: usize = 1 << 20;

/// A line of `/proc/self/status` in bytes: `VmRSS:` is what this process holds, `VmHWM:` the most
/// that it has held.
fn resident(field: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("a process");
    let line = status.lines().find(|line| line.starts_with(field));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    1024 * kib.unwrap_or_else(|| panic!("no {field} in {status}"))
}

/// By how much `work` raises the peak, in bytes.
fn raised(work: impl FnOnce()) -> usize {
    let before = resident("VmHWM:");
    work();
    resident("VmHWM:") - before
}

/// `work`, done in a process that runs nothing but the test `name`.
fn alone(name: &str, work: impl FnOnce()) {
    if std::env::var(ALONE).as_deref() == Ok(name) {
        return work();
    }
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args([name, "--exact", "--nocapture", "--test-threads", "1"])
        .env(ALONE, name)
        .output()
        .expect("a process");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{output:?}"
    );
}
