//! From the name of a model to how it is loaded.

use candle_core::Device;
#[cfg(feature = "hub")]
use sd_models::HubOptions;
use sd_pipeline::{LoadOptions, ModelSource};

use crate::{args::DtypeArg, error::Result};

/// `builtin`, a folder, or `ORG/NAME[@REVISION]`.
///
/// # Errors
/// The name is none of them.
pub(crate) fn source(name: &str) -> Result<ModelSource> {
    Ok(match name {
        "builtin" => sd_pipeline::builtin_model(),
        name => name.parse()?,
    })
}

/// How to load `source`.
///
/// # Errors
/// The environment's settings of the hub are wrong.
pub(crate) fn options(
    source: &ModelSource,
    device: Device,
    dtype: DtypeArg,
) -> Result<LoadOptions> {
    let from_hub = matches!(source, ModelSource::Hub { .. });
    Ok(LoadOptions {
        device,
        dtype: dtype.into(),
        // Half the download.
        variant: (from_hub && dtype == DtypeArg::F16).then(|| "fp16".to_owned()),
        #[cfg(feature = "hub")]
        hub: from_hub
            .then(HubOptions::from_env)
            .transpose()
            .map_err(sd_models::Error::Hub)?,
        ..LoadOptions::default()
    })
}
