//! `fisher plan`: read, make, tell, write.

use super::args::PlanArgs;
use super::make::make;
use super::source::Source;
use crate::measure::{Result, doing, write_out};
use crate::models::Checkpoint;
use crate::runs::Run;
use crate::say::say;

/// Make a plan.
///
/// # Errors
/// Whatever kept it from being made, in words.
pub(crate) fn plan(run: &PlanArgs) -> Result {
    Run::finished(&run.run)?;
    run.sensible()?;
    let device = run.device.device()?;
    doing("reading the run and its model");
    let checkpoint = match &run.model {
        Some(folder) => Some(Checkpoint::load(folder, &device.clone().autodiff())?),
        None => None,
    };
    let source = Source::open(
        &run.run,
        checkpoint.as_ref(),
        run.task.as_deref(),
        &run.params,
        &device,
    )?;
    let made = make(run, &source, checkpoint.as_ref(), &device)?;
    let json = serde_json::to_string_pretty(&made.json())?;
    if run.json {
        say!("{json}");
        return Ok(());
    }
    say!("{}", made.text().trim_end());
    let path = match &run.out {
        Some(path) => path.clone(),
        None => run.run.join(format!("plan-{}.json", made.kind)),
    };
    let replaced = match std::fs::read(&path) {
        Ok(before) if before == json.as_bytes() => ", the same as was there",
        Ok(_) => ", in place of what was there",
        Err(_) => "",
    };
    write_out(&path, &json)?;
    say!("\nWrote {}{replaced}.", path.display());
    Ok(())
}
