//! The frames of a WebP, which may claim another size than the file's header: the decoder compares them only once a frame
//! is decoded (RFC 9649).

/// Width and height of the frames, of an animation's too, as far as the file is well formed.
pub(crate) fn frames(bytes: &[u8]) -> Vec<(u32, u32)> {
    chunks(bytes.get(12..).unwrap_or_default())
        .flat_map(|(kind, data)| match kind {
            b"ANMF" => chunks(data.get(16..).unwrap_or_default())
                .filter_map(size)
                .collect(),
            _ => Vec::from_iter(size((kind, data))),
        })
        .collect()
}

/// Name and content of each chunk. The last one may be cut.
fn chunks(mut bytes: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let (kind, rest) = bytes.split_first_chunk::<4>()?;
        let (len, rest) = rest.split_first_chunk::<4>()?;
        let len = (u32::from_le_bytes(*len) as usize).min(rest.len());
        let (data, rest) = rest.split_at(len);
        // Chunks are padded to even lengths.
        bytes = rest.get(len % 2..).unwrap_or_default();
        Some((kind, data))
    })
}

fn size((kind, data): (&[u8; 4], &[u8])) -> Option<(u32, u32)> {
    const SIDE: u32 = 0x3FFF;
    match kind {
        b"VP8 " => {
            let [w0, w1, h0, h1] = *data.get(6..)?.first_chunk()?;
            let side = |low, high| u32::from(u16::from_le_bytes([low, high])) & SIDE;
            Some((side(w0, w1), side(h0, h1)))
        }
        b"VP8L" => {
            let bits = u32::from_le_bytes(*data.get(1..)?.first_chunk()?);
            Some(((bits & SIDE) + 1, (bits >> 14 & SIDE) + 1))
        }
        _ => None,
    }
}
