//! SHA-256 of files, in the usual spelling.

use std::fmt::Write as _;
use std::io;

use sha2::{Digest, Sha256};

/// Hashes what is written to it.
#[derive(Default)]
pub(crate) struct Hasher(Sha256);

impl Hasher {
    /// The hash of `bytes`, as [`hex`](Self::hex) spells it.
    pub(crate) fn of(bytes: &[u8]) -> String {
        let mut hasher = Self::default();
        hasher.0.update(bytes);
        hasher.hex()
    }

    /// The hash as 64 lower-case hexadecimal digits.
    pub(crate) fn hex(self) -> String {
        self.0
            .finalize()
            .iter()
            .fold(String::new(), |mut hex, byte| {
                // Writing to a String cannot fail.
                let _ = write!(hex, "{byte:02x}");
                hex
            })
    }
}

impl io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
