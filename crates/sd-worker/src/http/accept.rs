//! What a client prefers and what it has already (RFC 9110, sections 12.5.1 and 13.1.2).

use axum::http::{HeaderMap, HeaderName, header};

/// Which of `offers` the `Accept` headers like best, by index: earlier ones where it likes several equally. None if it
/// likes none.
pub(super) fn best<const N: usize>(headers: &HeaderMap, offers: [&str; N]) -> Option<usize> {
    let ranges: Vec<_> = items(headers, &header::ACCEPT)
        .filter_map(Range::parse)
        .collect();
    if ranges.is_empty() {
        return (N > 0).then_some(0);
    }
    let mut best: Option<(usize, u16)> = None;
    for (index, offer) in offers.into_iter().enumerate() {
        let quality = quality(&ranges, offer);
        if quality > best.map_or(0, |(_, quality)| quality) {
            best = Some((index, quality));
        }
    }
    best.map(|(index, _)| index)
}

/// Whether `If-None-Match` names `etag`, weakly or not.
pub(super) fn matches_etag(headers: &HeaderMap, etag: &str) -> bool {
    items(headers, &header::IF_NONE_MATCH)
        .any(|item| item == "*" || item.strip_prefix("W/").unwrap_or(item) == etag)
}

/// The comma-separated parts of all headers of a name.
fn items<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|item| !item.is_empty())
}

/// `image/*;q=0.5`
struct Range<'a> {
    kind: &'a str,
    subtype: &'a str,
    /// In thousandths.
    quality: u16,
}

impl<'a> Range<'a> {
    fn parse(item: &'a str) -> Option<Self> {
        let mut parts = item.split(';').map(str::trim);
        let (kind, subtype) = parts.next()?.split_once('/')?;
        let quality = parts
            .filter_map(|part| part.split_once('='))
            .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
            .map_or(Some(1.0), |(_, value)| value.trim().parse::<f32>().ok())?;
        (0.0..=1.0).contains(&quality).then_some(Self {
            kind,
            subtype,
            quality: (quality * 1000.0) as u16,
        })
    }

    /// How exactly it names the media type: 2 the type itself, 1 its kind, 0 anything. None: it does not.
    fn precision(&self, kind: &str, subtype: &str) -> Option<u8> {
        match (self.kind, self.subtype) {
            ("*", "*") => Some(0),
            (own, "*") if own.eq_ignore_ascii_case(kind) => Some(1),
            (own, sub) if own.eq_ignore_ascii_case(kind) && sub.eq_ignore_ascii_case(subtype) => {
                Some(2)
            }
            _ => None,
        }
    }
}

/// The quality that the most precise range gives to `offer`.
fn quality(ranges: &[Range<'_>], offer: &str) -> u16 {
    let (kind, subtype) = offer.split_once('/').unwrap_or((offer, ""));
    ranges
        .iter()
        .filter_map(|range| Some((range.precision(kind, subtype)?, range.quality)))
        .max()
        .map_or(0, |(_, quality)| quality)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    #[test]
    fn the_best_format_is_the_one_of_highest_quality() {
        const OFFERS: [&str; 3] = ["image/png", "image/webp", "image/jpeg"];
        for (accept, expected) in [
            ("*/*", Some(0)),
            ("image/*", Some(0)),
            ("image/jpeg", Some(2)),
            ("IMAGE/WebP", Some(1)),
            (
                "text/html, image/avif, image/webp;q=0.8, */*;q=0.1",
                Some(1),
            ),
            ("image/png;q=0.2, image/jpeg;q=0.9", Some(2)),
            ("image/*;q=0.5, image/png;q=0", Some(1)),
            ("*/*, image/png;q=0.1", Some(1)),
            ("text/html", None),
            ("image/png;q=0", None),
            ("image/gif, application/json", None),
            // What is no range is not there.
            ("nonsense", Some(0)),
        ] {
            assert_eq!(
                best(&with(header::ACCEPT, accept), OFFERS),
                expected,
                "{accept}"
            );
        }
        assert_eq!(best(&HeaderMap::new(), OFFERS), Some(0));
    }

    #[test]
    fn an_etag_is_found_in_a_list() {
        let matches = |value| matches_etag(&with(header::IF_NONE_MATCH, value), "\"a\"");
        for value in ["\"a\"", "W/\"a\"", "\"b\", \"a\"", "*"] {
            assert!(matches(value), "{value}");
        }
        for value in ["\"b\"", "a", "\"a", ""] {
            assert!(!matches(value), "{value}");
        }
    }
}
