//! The trace that a request belongs to: `traceparent` of W3C's Trace Context, whose id stands in the log.
//!
//! Invariant: what is no trace id never reaches the log.

use hyper::header::HeaderMap;

/// The trace's id, if the header is one of a version that has it.
pub fn id(headers: &HeaderMap) -> Option<&str> {
    let mut given = headers.get_all("traceparent").iter();
    // Two are none, as the standard has it.
    let (Some(only), None) = (given.next(), given.next()) else { return None };
    let mut parts = only.to_str().ok()?.trim().split('-');
    let mut next = |len| parts.next().filter(|part| part.len() == len && part.bytes().all(is_hex));
    let (version, trace, span, _flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
    let more = parts.next().is_some();
    let zero = |part: &str| part.bytes().all(|b| b == b'0');
    // The first version has four parts, later ones may have more.
    let wrong = version == "ff" || zero(trace) || zero(span) || (version == "00" && more);
    (!wrong).then_some(trace)
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use hyper::header::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn only_a_sound_header_names_a_trace() {
        let (trace, span) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
        let (zeros, zero) = ("0".repeat(32), "0".repeat(16));
        for (header, known) in [
            (format!("00-{trace}-{span}-01"), true),
            (format!("01-{trace}-{span}-01-more"), true),
            (format!("00-{trace}-{span}-01-more"), false),
            (format!("ff-{trace}-{span}-01"), false),
            (format!("00-{zeros}-{span}-01"), false),
            (format!("00-{trace}-{zero}-01"), false),
            (format!("00-{}-{span}-01", trace.to_uppercase()), false),
            (format!("00-{trace}-{span}"), false),
            ("nonsense".into(), false),
        ] {
            let value = HeaderValue::from_str(&header).unwrap();
            let headers = HeaderMap::from_iter([(HeaderName::from_static("traceparent"), value)]);
            assert_eq!(id(&headers), known.then_some(trace), "{header}");
        }
        assert_eq!(id(&HeaderMap::new()), None);
    }
}
