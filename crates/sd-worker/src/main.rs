//! The worker's command line.

use std::process::ExitCode;

use clap::Parser;
use sd_worker::args::Cli;

#[expect(clippy::print_stderr, reason = "errors go to standard error")]
fn main() -> ExitCode {
    match sd_worker::run(&Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.report());
            ExitCode::from(error.exit_code())
        }
    }
}
