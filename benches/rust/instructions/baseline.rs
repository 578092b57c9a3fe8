//! What the operations took when the file was written.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::process::{Command, ExitCode};

use serde_json::{Value, json};

use crate::Outcome;

const FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../benches/rust/instructions.json"
);

/// By how much a count may differ, in percent. Compilers and dependencies move counts, by less.
const TOLERANCE: u64 = 10;

/// Instructions of one repetition each, and of whose code.
pub(crate) struct Baseline {
    rustc: String,
    arch: String,
    counts: BTreeMap<String, u64>,
}

impl Baseline {
    /// What was counted here and now.
    pub(crate) fn of(counts: BTreeMap<String, u64>) -> Outcome<Self> {
        let version = Command::new("rustc").arg("--version").output()?.stdout;
        Ok(Self {
            rustc: String::from_utf8(version)?.trim().to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            counts,
        })
    }

    pub(crate) fn load() -> Outcome<Self> {
        let file: Value = serde_json::from_slice(&fs::read(FILE)?)?;
        let text = |key: &str| file[key].as_str().map(str::to_owned).ok_or("no text");
        let counts = file["instructions"].as_object().ok_or("no counts")?;
        let counts = counts.iter().map(|(name, count)| {
            let count = count.as_u64().ok_or("not a count")?;
            Ok((name.clone(), count))
        });
        Ok(Self {
            rustc: text("rustc")?,
            arch: text("arch")?,
            counts: counts.collect::<Outcome<_>>()?,
        })
    }

    pub(crate) fn store(&self) -> Outcome<()> {
        let file = json!({"rustc": self.rustc, "arch": self.arch, "instructions": self.counts});
        fs::write(FILE, serde_json::to_string_pretty(&file)? + "\n")?;
        Ok(())
    }
}

impl fmt::Display for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}, {}", self.arch, self.rustc)?;
        self.counts
            .iter()
            .try_for_each(|(name, count)| writeln!(f, "{count:>10}  {name}"))
    }
}

/// Shows both; a failure if an operation takes more than it may, or stands in one of them only.
pub(crate) fn compare(baseline: &Baseline, now: &Baseline) -> ExitCode {
    if baseline.arch != now.arch {
        println!("{now}not compared: the baseline is of {}", baseline.arch);
        return ExitCode::SUCCESS;
    }
    let (mut over, mut under) = (Vec::new(), Vec::new());
    if baseline.rustc != now.rustc {
        println!("then {}, now {}", baseline.rustc, now.rustc);
    }
    println!("{:>10} {:>10}", "then", "now");
    for (name, &count) in &now.counts {
        let Some(&before) = baseline.counts.get(name) else {
            println!("{:>10} {count:>10}          {name}", "-");
            over.push(name);
            continue;
        };
        let percent = (100 * count + before / 2) / before;
        println!("{before:>10} {count:>10} {percent:>6} %  {name}");
        if 100 * count > (100 + TOLERANCE) * before {
            over.push(name);
        } else if 100 * count < (100 - TOLERANCE) * before {
            under.push(name);
        }
    }
    let gone = baseline.counts.keys();
    let gone = gone.filter(|name| !now.counts.contains_key(*name));
    over.extend(gone);
    if !under.is_empty() {
        println!(
            "fewer than {}: `make instructions RENEW=1` keeps it so: {under:?}",
            100 - TOLERANCE
        );
    }
    if over.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("more than the baseline allows, or not in both: {over:?}");
    ExitCode::FAILURE
}
