//! `sd-worker serve`: from the configuration to a running service, and to its orderly end.

use crate::{
    args::ServeArgs,
    config::Config,
    error::{Error, Result},
};

/// Prints the configuration in force.
///
/// # Errors
/// As [`Config::load`]; standard output is closed.
pub fn print_config(args: &ServeArgs) -> Result<()> {
    use std::io::Write as _;

    let text = Config::load(args)?.to_toml()?;
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|source| Error::Stdout { source })
}
