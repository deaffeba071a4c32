//! The worker's commands: [`args`] is the command line, [`generate`] and [`models`] carry it out.
//!
//! What `serve` is made of: [`jobs`] says what a job is, [`store`] keeps them, [`engine`] works on them, [`webhook`] tells
//! when they are done.

pub mod args;
pub mod config;
mod device;
mod dump;
pub mod engine;
mod error;
pub mod generate;
mod hex;
pub mod http;
pub mod jobs;
mod loading;
pub mod logging;
pub mod models;
#[cfg(feature = "otel")]
mod otel;
mod output;
mod png;
mod progress;
pub mod serve;
pub mod store;
pub mod webhook;

pub use error::{Error, Result};

use args::Command;
use config::LogFormat;

/// Large results come from memory that others are done with, while there is work.
#[global_allocator]
static MEMORY: sd_ops::Recycler = sd_ops::Recycler::new();

/// Carries out a command.
///
/// # Errors
/// Whatever keeps it from being carried out.
pub fn run(command: &Command) -> Result<()> {
    // Silent unless RUST_LOG asks; the service has a log of its own.
    let quiet = || logging::init(None, "off", LogFormat::Human, None);
    match command {
        Command::Generate(args) => {
            let _log = quiet()?;
            generate::run(args)
        }
        Command::Models => {
            let _log = quiet()?;
            models::run()
        }
        Command::Serve(args) => serve::run(args),
        Command::Config(args) => serve::print_config(args),
    }
}
