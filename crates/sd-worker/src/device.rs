//! `--device` to a device.

use candle_core::Device;

use crate::{
    args::DeviceArg,
    error::{Error, Result},
};

/// Opens the device that was asked for; `auto` takes the first graphics device that opens, otherwise the CPU.
///
/// # Errors
/// The build lacks the device's feature, or the machine lacks the device.
pub(crate) fn open(device: DeviceArg) -> Result<Device> {
    let not_found = |name: String| move |source| Error::DeviceNotFound { name, source };
    match device {
        DeviceArg::Auto => Ok(Device::new_cuda(0)
            .or_else(|_| Device::new_metal(0))
            .unwrap_or(Device::Cpu)),
        DeviceArg::Cpu => Ok(Device::Cpu),
        DeviceArg::Cuda(_) if !cfg!(feature = "cuda") => Err(Error::DeviceNotBuilt("cuda")),
        DeviceArg::Cuda(index) => {
            Device::new_cuda(index).map_err(not_found(format!("cuda:{index}")))
        }
        DeviceArg::Metal if !cfg!(feature = "metal") => Err(Error::DeviceNotBuilt("metal")),
        DeviceArg::Metal => Device::new_metal(0).map_err(not_found("metal".to_owned())),
    }
}
