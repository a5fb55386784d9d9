//! What figures depend on beside the program: date, machine, versions.

use burn::tensor::Device;
use fisher_cli::date;
use fisher_examples::device::Backend;

use crate::cube::Cube;
use crate::names::name;

/// Where, when and with what is measured.
pub(crate) fn describe(backend: Backend, device: &Device) -> String {
    let adapter = Cube::of(device).map(|cube| format!(" ({})", cube.name()));
    // Of benches, where debug assertions are on as well in tests and off in `cargo bench`.
    let profile = match cfg!(debug_assertions) {
        true => "built for tests, not for speed",
        false => "optimized",
    };
    format!(
        "{}{}, {}, {} threads; Burn {}, {profile}; {}.",
        name(backend),
        adapter.unwrap_or_default(),
        processor(),
        rayon::current_num_threads(),
        burn_version(),
        date::now().unwrap_or_else(|| "no date".to_owned()),
    )
}

/// The processor's name, where the system tells.
fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| {
        let (field, value) = line.split_once(':')?;
        (field.trim() == "model name").then(|| value.trim().to_owned())
    });
    model.unwrap_or_else(|| format!("an {} processor", std::env::consts::ARCH))
}

/// The version that is locked.
fn burn_version() -> &'static str {
    let lock = include_str!("../../../Cargo.lock");
    let after = lock.split("name = \"burn\"\nversion = \"").nth(1);
    after
        .and_then(|rest| rest.split('"').next())
        .unwrap_or("of an unknown version")
}
