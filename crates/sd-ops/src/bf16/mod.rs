//! The operators with products of bf16 numbers, which processors with AVX-512 BF16 compute twice as fast as those of f32, and
//! processors with AMX many times as fast.
//!
//! Inputs, sums and results are f32: both factors of a product are rounded to bf16, to nearest, ties to even, and nothing else is.
//! That is more exact than a network whose activations are bf16, as PyTorch's. Weights are laid out for the products once, as a
//! [`Weight`].
//!
//! As with the operators of f32, a sample's result has the same bits whatever the other samples of its batch are and however many
//! threads compute it. It does depend on the processor: AMX, AVX-512 BF16 and plain code add products in different order.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod attention;
mod conv;
mod line;
mod linear;
mod product;
mod weight;

pub use attention::{attention, attention_scratch};
pub use conv::{Beside, conv2d, conv2d_doubled, conv2d_scratch, conv2d_with};
pub use linear::{linear, linear_geglu};
pub use weight::Weight;
