//! Times of the core's operations, each that copies nothing beside one that copies.

use std::time::Duration;

use criterion::Criterion;

mod catalog;
#[path = "../common.rs"]
mod common;
mod frames;
mod fresh;
mod sweep;
mod tables;
mod tensors;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .configure_from_args();
    frames::measure(&mut criterion);
    tensors::measure(&mut criterion);
    tables::measure(&mut criterion);
    catalog::measure(&mut criterion);
    sweep::measure(&mut criterion);
    criterion.final_summary();
}
