//! From the name of a model to how it is loaded.

use candle_core::Device;
#[cfg(feature = "hub")]
use sd_models::HubOptions;
use sd_pipeline::{LoadOptions, ModelSource};
use sysinfo::System;

use crate::{args::DtypeArg, config::ByteSize, error::Result};

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

/// The most memory to take, in bytes: what was asked for, otherwise on the CPU what the machine has, or the control group
/// at the root of the file system of such groups, as that of a container is. `None`, and a warning, where the system does
/// not say.
pub(crate) fn max_memory(asked: Option<ByteSize>, device: &Device) -> Option<u64> {
    match asked {
        Some(size) => Some(size.0),
        None if device.is_cpu() => {
            let mut system = System::new();
            system.refresh_memory();
            let machine = system.total_memory();
            if machine == 0 {
                tracing::warn!(
                    "the system does not tell its memory: without a limit of its own (max-memory) none is kept"
                );
                return None;
            }
            // Panics where the machine's own is not known.
            let group = system.cgroup_limits().map(|group| group.total_memory);
            Some(group.unwrap_or(machine))
        }
        None => None,
    }
}
