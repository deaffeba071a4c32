//! Golden pictures from Pillow and diffusers.
#![allow(dead_code, reason = "no test file uses all of it")]

use std::fs;
use std::path::PathBuf;

use image::{ImageBuffer, Luma, Pixel, Rgb};
use safetensors::SafeTensors;

/// A picture of 8-bit samples.
pub(crate) type Samples<P> = ImageBuffer<P, Vec<u8>>;

/// A file or folder of `tests/golden/images`.
pub(crate) fn golden(name: &str) -> PathBuf {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/images");
    PathBuf::from(root).join(name)
}

/// The pictures of one fixture file, by name, as [height, width, channels].
pub(crate) struct Golden(Vec<u8>);

impl Golden {
    pub(crate) fn read(name: &str) -> Self {
        let path = golden(name);
        Self(fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())))
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.0).unwrap()
    }

    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self
            .tensors()
            .names()
            .iter()
            .map(|name| (*name).to_owned())
            .collect();
        names.sort_unstable();
        assert!(!names.is_empty());
        names
    }

    /// Whether the picture has colours, not levels of grey.
    pub(crate) fn is_rgb(&self, name: &str) -> bool {
        self.tensors().tensor(name).unwrap().shape()[2] == 3
    }

    pub(crate) fn get<P: Pixel<Subpixel = u8>>(&self, name: &str) -> Samples<P> {
        let tensors = self.tensors();
        let tensor = tensors
            .tensor(name)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let [height, width, channels] = tensor.shape() else {
            panic!("{name}: {:?}", tensor.shape());
        };
        assert_eq!(*channels, usize::from(P::CHANNEL_COUNT), "{name}");
        ImageBuffer::from_raw(*width as u32, *height as u32, tensor.data().to_vec()).unwrap()
    }

    pub(crate) fn rgb(&self, name: &str) -> Samples<Rgb<u8>> {
        self.get(name)
    }

    pub(crate) fn grey(&self, name: &str) -> Samples<Luma<u8>> {
        self.get(name)
    }
}

/// Most levels two pictures of one size differ by.
pub(crate) fn levels_off<P: Pixel<Subpixel = u8>>(a: &Samples<P>, b: &Samples<P>) -> u8 {
    assert_eq!(a.dimensions(), b.dimensions());
    let levels = a
        .as_raw()
        .iter()
        .zip(b.as_raw())
        .map(|(a, b)| a.abs_diff(*b));
    levels.max().unwrap_or(0)
}
