//! How much memory `generate` may take.

use clap::Args;
use sd_pipeline::AttentionSlice;

use crate::config::ByteSize;

/// The limit, and what trades time for memory.
#[derive(Args, Debug)]
#[command(next_help_heading = "Memory")]
pub struct MemoryArgs {
    /// Most memory to take, such as 8GiB: what does not fit is made in tiles, or refused before it is begun [default:
    /// what the machine has, on the CPU]
    #[arg(long, value_name = "SIZE")]
    pub max_memory: Option<ByteSize>,

    /// Encode and decode pictures in tiles [default: only where the memory asks for it]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub vae_tiling: Option<bool>,

    /// Queries that attend at a time on a graphics device: a number, or auto
    #[arg(long, value_name = "N", default_value = "auto")]
    pub attention_slice: AttentionSlice,
}
