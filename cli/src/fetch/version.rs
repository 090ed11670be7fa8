//! Versions of Python packages, ordered as PEP 440 says.
//!
//! Local parts (`+cu121`) are compared as text, which is enough to tell them apart.

use std::cmp::Ordering;

/// A version; `1.0` equals `1.0.0`.
#[derive(Clone, Debug)]
pub struct Version {
    epoch: u64,
    release: Vec<u64>,
    /// (a | b | rc, number)
    pre: Option<(char, u64)>,
    post: Option<u64>,
    dev: Option<u64>,
    local: String,
}

impl Version {
    /// Reads a version in any spelling that PEP 440 allows.
    pub fn parse(text: &str) -> Option<Version> {
        let text = text.trim().to_ascii_lowercase();
        let (public, local) = text.split_once('+').map_or((text.as_str(), ""), |(public, local)| (public, local));
        if text.ends_with('+') || !local.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)) {
            return None;
        }
        let public = public.strip_prefix('v').unwrap_or(public);
        let (epoch, mut rest) = match public.split_once('!') {
            Some((epoch, rest)) => (number(epoch)?, rest),
            None => (0, public),
        };
        let mut release = vec![take_number(&mut rest)?];
        while let Some(mut tail) = rest.strip_prefix('.') {
            let Some(part) = take_number(&mut tail) else { break };
            release.push(part);
            rest = tail;
        }
        let pre = take_part(
            &mut rest,
            &[
                ("alpha", 'a'),
                ("beta", 'b'),
                ("preview", 'c'),
                ("pre", 'c'),
                ("rc", 'c'),
                ("a", 'a'),
                ("b", 'b'),
                ("c", 'c'),
            ],
        )?;
        let post = match rest.strip_prefix('-') {
            Some(mut tail) if tail.starts_with(|c: char| c.is_ascii_digit()) => {
                let post = take_number(&mut tail)?;
                rest = tail;
                Some(post)
            }
            _ => take_part(&mut rest, &[("post", 'p'), ("rev", 'p'), ("r", 'p')])?.map(|(_, n)| n),
        };
        let dev = take_part(&mut rest, &[("dev", 'd')])?.map(|(_, n)| n);
        while release.len() > 1 && release.last() == Some(&0) {
            release.pop();
        }
        rest.is_empty().then(|| Version { epoch, release, pre, post, dev, local: local.replace(['-', '_'], ".") })
    }

    /// Whether it is an alpha, beta, candidate or development version.
    pub fn is_prerelease(&self) -> bool {
        self.pre.is_some() || self.dev.is_some()
    }

    fn key(&self) -> impl Ord {
        // A development version of a final release comes before its alphas; a final release after its candidates.
        let pre = match (self.pre, self.post, self.dev) {
            (None, None, Some(_)) => ('A', 0),
            (None, _, _) => ('z', 0),
            (Some(pre), _, _) => pre,
        };
        let post = self.post.map_or((0, 0), |n| (1, n));
        let dev = self.dev.map_or((1, 0), |n| (0, n));
        (self.epoch, self.release.clone(), pre, post, dev, self.local.clone())
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Version {}

fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
}

fn take_number(rest: &mut &str) -> Option<u64> {
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, tail) = rest.split_at(end);
    let value = number(digits)?;
    *rest = tail;
    Some(value)
}

/// `[-_.]?NAME[-_.]?NUMBER?`; `None` if a number overflows.
#[allow(clippy::option_option)]
fn take_part(rest: &mut &str, names: &[(&str, char)]) -> Option<Option<(char, u64)>> {
    let body = rest.strip_prefix(['-', '_', '.']).unwrap_or(rest);
    let Some((tail, kind)) = names.iter().find_map(|(name, kind)| Some((body.strip_prefix(name)?, *kind))) else {
        return Some(None);
    };
    let mut digits = tail.strip_prefix(['-', '_', '.']).unwrap_or(tail);
    if digits.starts_with(|c: char| c.is_ascii_digit()) {
        let value = take_number(&mut digits)?;
        *rest = digits;
        return Some(Some((kind, value)));
    }
    *rest = tail;
    Some(Some((kind, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn order_is_that_of_pep_440() {
        // The list of the PEP's section on ordering, with an epoch added.
        let ascending = [
            "1.0.dev456",
            "1.0a1",
            "1.0a2.dev456",
            "1.0a12.dev456",
            "1.0a12",
            "1.0b1.dev456",
            "1.0b2",
            "1.0b2.post345.dev456",
            "1.0b2.post345",
            "1.0rc1.dev456",
            "1.0rc1",
            "1.0",
            "1.0+abc.5",
            "1.0.post456.dev34",
            "1.0.post456",
            "1.0.15",
            "1.1.dev1",
            "1.10",
            "1!0.1",
        ];
        let parsed: Vec<_> = ascending.iter().map(|v| Version::parse(v).unwrap_or_else(|| panic!("{v}"))).collect();
        for (pair, names) in parsed.windows(2).zip(ascending.windows(2)) {
            assert!(pair[0] < pair[1], "{names:?}");
        }
    }

    #[test]
    fn spellings_of_one_version_are_equal() {
        for (a, b) in [
            ("1.0", "1.0.0"),
            ("v1.1rc1", "1.1-RC.1"),
            ("1.0-1", "1.0.post1"),
            ("1.0alpha", "1.0a0"),
            ("1.0pre2", "1.0c2"),
        ] {
            assert_eq!(Version::parse(a).unwrap(), Version::parse(b).unwrap(), "{a} {b}");
        }
        for bad in ["", "x", "1.", "1.0/..", "1.0+", "99999999999999999999999", "1..0", "-1"] {
            assert!(Version::parse(bad).is_none(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_version_or_none(text in "\\PC{0,40}") {
            let _ = Version::parse(&text);
        }
    }
}
