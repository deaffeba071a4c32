//! Checks of parsed values, shared by the files.

use std::ops::RangeInclusive;

use serde::Serialize;

use crate::json::File;
use crate::{PerBlock, Result};

impl File<'_> {
    /// `value` lies in `range`.
    pub(crate) fn range(self, key: &str, value: usize, range: RangeInclusive<usize>) -> Result<()> {
        if range.contains(&value) {
            return Ok(());
        }
        let expected = format!("expected {} to {}", range.start(), range.end());
        Err(self.invalid(key, value, expected))
    }

    /// `value` is finite and above zero.
    pub(crate) fn positive(self, key: &str, value: f64) -> Result<()> {
        if value.is_finite() && value > 0.0 {
            return Ok(());
        }
        Err(self.invalid(key, value, "expected a number above 0"))
    }

    /// `list` has `len` entries.
    pub(crate) fn length(self, key: &str, list: &[impl Serialize], len: usize) -> Result<()> {
        if list.len() == len {
            return Ok(());
        }
        Err(self.invalid(key, list, format!("expected a list of {len}")))
    }

    /// The value, or each of a list of `len`, lies in `range`.
    pub(crate) fn per_block(
        self,
        key: &str,
        values: &PerBlock<usize>,
        len: usize,
        range: RangeInclusive<usize>,
    ) -> Result<()> {
        match values {
            PerBlock::Same(value) => self.range(key, *value, range),
            PerBlock::Each(values) => {
                self.length(key, values, len)?;
                values
                    .iter()
                    .try_for_each(|&value| self.range(key, value, range.clone()))
            }
        }
    }

    /// There are 1 to 8 blocks, and the groups of the group norms divide their channels.
    pub(crate) fn block_out_channels(self, channels: &[usize], groups: usize) -> Result<()> {
        let key = "block_out_channels";
        self.range("norm_num_groups", groups, 1..=1 << 12)?;
        if !(1..=8).contains(&channels.len()) {
            return Err(self.invalid(key, channels, "expected a list of 1 to 8"));
        }
        for &channels in channels {
            self.range(key, channels, 1..=1 << 14)?;
            if !channels.is_multiple_of(groups) {
                let expected = format!("expected a multiple of norm_num_groups, {groups}");
                return Err(self.invalid(key, channels, expected));
            }
        }
        Ok(())
    }
}
