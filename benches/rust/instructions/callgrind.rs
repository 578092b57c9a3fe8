//! Counting by valgrind.

use std::process::{Child, Command, Stdio};

use crate::Outcome;
use crate::scenarios::Scenario;

/// The argument by which this program runs one scenario.
pub(crate) const RUN: &str = "--run";

pub(crate) fn is_installed() -> bool {
    let mut version = Command::new("valgrind");
    version.arg("--version").stdout(Stdio::null());
    version.status().is_ok()
}

/// The instructions of one repetition: those of as many again, so that what happens once is not
/// among them.
pub(crate) fn count(scenario: &Scenario) -> Outcome<u64> {
    let once = start(scenario, 1)?;
    let twice = start(scenario, 2)?;
    let (once, twice) = (end(scenario, once)?, end(scenario, twice)?);
    match twice.saturating_sub(once) / scenario.times {
        0 => Err(format!("{}: nothing was counted", scenario.name).into()),
        count => Ok(count),
    }
}

fn start(scenario: &Scenario, factor: u64) -> Outcome<Child> {
    let times = factor * scenario.times;
    let mut run = Command::new("valgrind");
    run.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args([RUN, scenario.name, &times.to_string()])
        // Threads that look for work take instructions, as many as they have time for.
        .env("RAYON_NUM_THREADS", "1")
        .stderr(Stdio::piped());
    Ok(run.spawn()?)
}

fn end(scenario: &Scenario, run: Child) -> Outcome<u64> {
    let run = run.wait_with_output()?;
    let said = String::from_utf8_lossy(&run.stderr);
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected :"))
        .filter(|_| run.status.success())
        .ok_or_else(|| format!("{}: {}\n{said}", scenario.name, run.status))?;
    Ok(collected.1.trim().parse()?)
}
