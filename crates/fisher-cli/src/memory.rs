//! What a program takes, and what there is.

use std::path::Path;

/// Resident memory in GB, now or at its peak, where the system tells: `field` is
/// `VmRSS:` or `VmHWM:`.
pub fn resident(field: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    kilobytes(&status, field).map(|kilobytes| kilobytes as f64 * 1024.0 / 1e9)
}

/// Bytes of memory that a program may still take, where the system tells: what is free, or what is
/// left of the limit of its control group.
pub fn available_memory() -> Option<u64> {
    let read = |path: &Path| std::fs::read_to_string(path).ok();
    let free = read(Path::new("/proc/meminfo"));
    let free = free.and_then(|text| kilobytes(&text, "MemAvailable:"));
    let group = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let group = group.lines().find_map(|line| line.strip_prefix("0::/"));
    let folder = Path::new("/sys/fs/cgroup").join(group.unwrap_or_default());
    let number = |file: &str| read(&folder.join(file))?.trim().parse::<u64>().ok();
    let left = number("memory.max").zip(number("memory.current"));
    let left = left.map(|(limit, taken)| limit.saturating_sub(taken));
    free.map(|kilobytes| 1024 * kilobytes)
        .into_iter()
        .chain(left)
        .min()
}

/// Bytes that are free where `path` is, or will be, where the system tells.
pub fn available_disk(path: &Path) -> Option<u64> {
    let path = std::path::absolute(path).ok()?;
    let folder = path.ancestors().find(|folder| folder.exists())?;
    free_bytes(folder)
}

#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let system = rustix::fs::statvfs(folder).ok()?;
    Some(system.f_bavail * system.f_frsize)
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

/// The number of a line such as `VmRSS:  12 kB`.
fn kilobytes(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(field))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
