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
mod output;
mod png;
mod progress;
pub mod serve;
pub mod store;
pub mod webhook;

pub use error::{Error, Result};
