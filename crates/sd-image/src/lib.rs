//! Pictures in and out of Stable Diffusion.
