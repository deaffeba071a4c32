//! Numbers of the compatible APIs' fields, which are signed on the wire.

use std::ops::RangeInclusive;

use super::{ApiError, Result};

/// A whole number within `range`, if one is given.
///
/// # Errors
/// 422 naming the field.
pub(super) fn whole(
    field: &'static str,
    value: Option<i64>,
    range: RangeInclusive<i64>,
) -> Result<Option<usize>> {
    value
        .map(|value| match usize::try_from(value) {
            Ok(whole) if range.contains(&value) => Ok(whole),
            _ => {
                let (least, most) = (range.start(), range.end());
                let message = format!("{field}: got {value}, expected {least} to {most}");
                Err(ApiError::invalid(field, message))
            }
        })
        .transpose()
}
