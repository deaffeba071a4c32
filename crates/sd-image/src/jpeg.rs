//! Whether a JPEG is whole: the decoder paints what is missing grey and says nothing.

const END: u8 = 0xD9;
/// Markers without a segment: stuffed bytes, restarts, the start of the file, one for arithmetic coding.
const BARE: [u8; 12] = [
    0x00, 0x01, 0xD0, 0xD1, 0xD2, 0xD3, 0xD4, 0xD5, 0xD6, 0xD7, 0xD8, 0xFF,
];

/// Follows the markers; true if they reach the end of the picture. Thumbnails lie within a segment and do not count.
pub(crate) fn is_whole(mut bytes: &[u8]) -> bool {
    while let Some(at) = bytes.iter().position(|byte| *byte == 0xFF) {
        match bytes.get(at + 1) {
            None => return false,
            Some(&END) => return true,
            // A run of 0xFF may end in a marker.
            Some(marker) if BARE.contains(marker) => bytes = &bytes[at + 1..],
            Some(_) => {
                let Some([high, low]) = bytes.get(at + 2..at + 4) else {
                    return false;
                };
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                let Some(rest) = bytes.get(at + 2 + length..) else {
                    return false;
                };
                bytes = rest;
            }
        }
    }
    false
}
