//! An encoded picture, as it travels in requests.

use std::fmt::{self, Write as _};
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{self, Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::{Decoded, Error, Limits, Result};

/// Some clients leave the padding out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// An encoded picture (PNG, JPEG or WebP), not yet looked at. Clones share the bytes.
///
/// In JSON it is base64; a `data:` URI is read as well, and white space in either is skipped.
///
/// ```
/// use sd_image::Picture;
///
/// let picture = Picture::from_base64("data:image/png;base64,iVBORw0KGgo=")?;
/// assert_eq!(picture.bytes(), b"\x89PNG\r\n\x1a\n");
/// # Ok::<(), sd_image::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Picture(Arc<[u8]>);

impl Picture {
    /// A picture of encoded bytes. They are read by [`Picture::decode`] only.
    pub fn from_bytes(bytes: impl Into<Arc<[u8]>>) -> Self {
        Self(bytes.into())
    }

    /// Reads base64, or a `data:` URI with base64.
    ///
    /// # Errors
    /// [`Error::Base64`].
    pub fn from_base64(text: &str) -> Result<Self> {
        let text = text.trim_start();
        let encoded = match text.get(..5) {
            // The comma ends the media type; without one there is nothing to read.
            Some(scheme) if scheme.eq_ignore_ascii_case("data:") => {
                text.split_once(',').map_or("", |(_, encoded)| encoded)
            }
            _ => text,
        };
        let encoded: Vec<u8> = encoded
            .bytes()
            .filter(|byte| !byte.is_ascii_whitespace())
            .collect();
        BASE64
            .decode(encoded)
            .map(Self::from_bytes)
            .map_err(Error::Base64)
    }

    /// The encoded bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The encoded bytes as base64 with padding.
    pub fn to_base64(&self) -> String {
        BASE64.encode(&self.0)
    }

    /// SHA-256 of the encoded bytes, 64 lower-case hexadecimal digits.
    pub fn sha256(&self) -> String {
        Sha256::digest(&self.0)
            .iter()
            .fold(String::new(), |mut hex, byte| {
                // Writing to a String cannot fail.
                let _ = write!(hex, "{byte:02x}");
                hex
            })
    }

    /// Width and height in pixels as the picture is shown, without decoding it.
    ///
    /// # Errors
    /// Those of [`Picture::decode`], as far as the header tells.
    pub fn size(&self, limits: &Limits) -> Result<(u32, u32)> {
        crate::decode::size(&self.0, limits)
    }

    /// Decodes the picture and turns it as its EXIF orientation says.
    ///
    /// # Errors
    /// [`Error::Format`], [`Error::TooLarge`] and [`Error::Memory`] (before any pixel is allocated), [`Error::Truncated`]
    /// or [`Error::Decode`].
    pub fn decode(&self, limits: &Limits) -> Result<Decoded> {
        crate::decode::decode(&self.0, limits)
    }
}

/// Length and hash in place of the bytes.
impl fmt::Debug for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Picture")
            .field("len", &self.0.len())
            .field("sha256", &self.sha256())
            .finish()
    }
}

impl Serialize for Picture {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_base64())
    }
}

impl<'de> Deserialize<'de> for Picture {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl de::Visitor<'_> for Text {
            type Value = Picture;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a picture as base64 or as a data URI")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Picture, E> {
                Picture::from_base64(text).map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}
