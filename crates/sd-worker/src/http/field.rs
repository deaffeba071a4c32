//! Fields of requests that several of the APIs have: what they may hold, and how they are refused.

use std::ops::RangeInclusive;

use super::{ApiError, Result};

/// Longest text that is only recorded, in characters.
const MAX_LABEL: usize = 200;
/// Longest part of a wrong value that an error repeats, in characters.
const MAX_SHOWN: usize = 40;

/// A whole number within `range`, if one is given; on the wire of the compatible APIs it is signed.
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

/// A text that is only recorded with the job.
///
/// # Errors
/// 422 naming the field: it is too long.
pub(super) fn label(field: &'static str, text: String) -> Result<String> {
    if text.chars().count() > MAX_LABEL {
        let message = format!("{field}: expected at most {MAX_LABEL} characters");
        return Err(ApiError::invalid(field, message));
    }
    Ok(text)
}

/// 422: this worker cannot do what the field asks, and why.
pub(super) fn unsupported(field: &str, reason: &str) -> ApiError {
    ApiError::unsupported(field, format!("{field}: {reason}"))
}

/// As much of a wrong value as an error repeats.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(MAX_SHOWN).collect()
}
