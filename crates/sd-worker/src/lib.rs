//! The worker's commands: [`args`] is the command line, [`generate`] and [`models`] carry it out.

pub mod args;
mod device;
mod dump;
mod error;
pub mod generate;
pub mod models;
mod output;
mod png;
mod progress;

pub use error::{Error, Result};
