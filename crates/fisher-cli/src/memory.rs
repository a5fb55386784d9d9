//! What a program takes.

/// Resident memory in GB, now or at its peak, where the system tells: `field` is
/// `VmRSS:` or `VmHWM:`.
pub fn resident(field: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    let kilobytes: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024.0 / 1e9)
}
