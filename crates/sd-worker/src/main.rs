//! The worker's command line.

use std::process::ExitCode;

use clap::Parser;
use sd_worker::{
    args::{Cli, Command},
    config::LogFormat,
    logging,
};

#[expect(clippy::print_stderr, reason = "errors go to standard error")]
fn main() -> ExitCode {
    let command = Cli::parse().command;
    if !matches!(command, Command::Serve(_)) {
        // Silent unless RUST_LOG asks.
        logging::init("off", LogFormat::Human);
    }
    let done = match command {
        Command::Generate(args) => sd_worker::generate::run(&args),
        Command::Models => sd_worker::models::run(),
        Command::Serve(args) => sd_worker::serve::run(&args),
        Command::Config(args) => sd_worker::serve::print_config(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", error.report());
            ExitCode::from(error.exit_code())
        }
    }
}
