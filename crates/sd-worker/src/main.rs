//! The worker's command line.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use clap::Parser;
use sd_worker::args::{Cli, Command};
use tracing_subscriber::EnvFilter;

#[expect(clippy::print_stderr, reason = "errors go to standard error")]
fn main() -> ExitCode {
    // Silent unless RUST_LOG asks.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .init();

    let done = match Cli::parse().command {
        Command::Generate(args) => sd_worker::generate::run(&args),
        Command::Models => sd_worker::models::run(),
        Command::Serve(_) => todo!(),
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
