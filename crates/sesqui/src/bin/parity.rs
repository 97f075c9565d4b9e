//! Compares a device with the CPU.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use sesqui::backend::{Backend, settle};
use sesqui::cli::DeviceArguments;
use sesqui::memory::keep_freed_memory;
use sesqui::misuse::{Misuse, report};
use sesqui::output::say;
use sesqui::parity::{compare, table};

/// Compute the same on a device and on the CPU, and say by how much they differ.
///
/// Models of both families with the quick start's data, which is generated: logits, losses, gradients, three
/// optimizer steps of each of its stages, and answers in words, in latent steps and on a staircase of shortcuts.
#[derive(Parser, Debug)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    #[command(flatten)]
    devices: DeviceArguments,
}

const EXAMPLES: &str = "\
Examples:
  parity --backend cuda            a build with --features cuda
  parity --backend wgpu --devices 1
Exit codes: 0 all agree, 1 some do not, 2 wrong use.";

fn main() -> ExitCode {
    keep_freed_memory();
    let arguments = Arguments::parse();
    settle();
    match parity(&arguments) {
        Ok(code) => code,
        Err(error) => report(&error),
    }
}

fn parity(arguments: &Arguments) -> Result<ExitCode> {
    let place = arguments.devices.open()?;
    if place.name() == Backend::Cpu.name() {
        let said = place.description();
        return Err(Misuse(format!(
            "{said}: the CPU beside itself says nothing; name a backend of another device"
        ))
        .into());
    }
    if place.workers().len() > 1 {
        return Err(Misuse(
            "--devices: one device is compared at a time; call it once for each".to_owned(),
        )
        .into());
    }
    say(format!("{} beside cpu", place.description()))?;
    let checks = compare(&place)?;
    say(table(&checks))?;
    let failing = checks.iter().filter(|check| !check.holds()).count();
    say(format!(
        "{} of {} checks agree",
        checks.len() - failing,
        checks.len()
    ))?;
    Ok(match failing {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
