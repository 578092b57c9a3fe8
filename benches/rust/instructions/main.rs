//! Instructions that the core's operations take, compared with what they took.
//!
//! A clock on a shared machine tells twice the time apart, and hides a tenth. Instructions are the
//! same in each run, so a tenth more is a change of the code. What the kernel does is not counted.

use std::collections::BTreeMap;
use std::error::Error;
use std::process::ExitCode;

mod baseline;
mod callgrind;
#[path = "../common.rs"]
mod common;
mod scenarios;

use baseline::Baseline;
use scenarios::SCENARIOS;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    if let [callgrind::RUN, name, times] = arguments[..] {
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name);
        (scenario.ok_or("no such scenario")?.run)(times.parse()?);
        return Ok(ExitCode::SUCCESS);
    }
    if cfg!(debug_assertions) {
        // A test run: what this build takes says nothing.
        for scenario in SCENARIOS {
            (scenario.run)(1);
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !callgrind::is_installed() {
        println!("instructions: valgrind is not installed, so none are counted");
        return Ok(ExitCode::SUCCESS);
    }
    let mut counted = BTreeMap::new();
    for scenario in SCENARIOS {
        counted.insert(scenario.name.to_owned(), callgrind::count(scenario)?);
    }
    let counted = Baseline::of(counted)?;
    if arguments.contains(&"--renew") {
        counted.store()?;
        println!("{counted}");
        return Ok(ExitCode::SUCCESS);
    }
    Ok(baseline::compare(&Baseline::load()?, &counted))
}
