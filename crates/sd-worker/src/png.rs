//! PNG bytes of a picture, with text chunks that other tools read.

use image::RgbImage;
use png::{BitDepth, ColorType, Encoder, EncodingError};

/// Encodes `image` with `texts`, pairs of keyword and text. The same picture and texts give the same bytes.
///
/// A text goes to a `tEXt` chunk when it is Latin-1, which is all that chunk may hold, and to `iTXt` (UTF-8) otherwise,
/// as Pillow does: readers of either find it.
///
/// # Errors
/// The picture is empty.
pub(crate) fn encode(image: &RgbImage, texts: &[(&str, &str)]) -> Result<Vec<u8>, EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = Encoder::new(&mut bytes, image.width(), image.height());
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    for (keyword, text) in texts {
        let (keyword, text) = ((*keyword).to_owned(), (*text).to_owned());
        if text.chars().all(|letter| u32::from(letter) < 256) {
            encoder.add_text_chunk(keyword, text)?;
        } else {
            encoder.add_itxt_chunk(keyword, text)?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image)?;
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn pixels_and_texts_come_back() {
        let image = RgbImage::from_fn(5, 3, |x, y| image::Rgb([x as u8, y as u8, 200]));
        let bytes = encode(
            &image,
            &[
                ("parameters", "café\nSteps: 2"),
                ("sd", "{\"prompt\": \"赤い円\"}"),
            ],
        )
        .unwrap();

        let mut reader = png::Decoder::new(Cursor::new(bytes)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        reader.next_frame(&mut pixels).unwrap();
        assert_eq!(pixels, *image);
        let latin1 = &reader.info().uncompressed_latin1_text;
        assert_eq!(latin1[0].keyword, "parameters");
        assert_eq!(latin1[0].text, "café\nSteps: 2");
        let utf8 = &reader.info().utf8_text;
        assert_eq!(utf8[0].keyword, "sd");
        assert_eq!(utf8[0].get_text().unwrap(), "{\"prompt\": \"赤い円\"}");
    }
}
