//! What a report must not tell: paths, names of hosts and users, addresses, ids of instances, serial numbers.
//!
//! Invariant: rather too much is taken out than too little. A version of four numbers looks like an address, and goes.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Takes paths, host names, addresses, instance ids and serial numbers out of a text.
#[derive(Clone, Debug, Default)]
pub struct Redaction {
    /// Names to take out wherever they stand as a word: the host's, the user's.
    pub names: Vec<String>,
}

impl Redaction {
    /// The text without them; words are otherwise kept, and blanks become single.
    pub fn of(&self, text: &str) -> String {
        let words = text.split_whitespace().map(|word| self.word(word));
        words.collect::<Vec<_>>().join(" ")
    }

    fn word(&self, word: &str) -> String {
        let start = word.find(is_plain).unwrap_or(word.len());
        let end = word
            .rfind(is_plain)
            .map_or(start, |at| at + word[at..].chars().next().map_or(0, char::len_utf8))
            .max(start);
        let core = word[start..end].trim_end_matches(['.', ':']);
        if core.contains(['/', '\\']) || core.starts_with('~') {
            return format!("{}<path>{}", &word[..start], &word[start + core.len()..]);
        }
        // Brackets, quotes, `=` and the like divide a word.
        let mut told = String::new();
        for piece in word.split_inclusive(|c| !is_plain(c)) {
            let text = piece.trim_end_matches(|c| !is_plain(c));
            told += &self.piece(text);
            told += &piece[text.len()..];
        }
        told
    }

    /// What has no bracket or the like in it.
    fn piece(&self, piece: &str) -> String {
        let core = piece.trim_end_matches(['.', ':']);
        let after = &piece[core.len()..];
        // Of `key:value` any end may be the secret.
        let starts = [0].into_iter().chain(core.match_indices(':').map(|(at, _)| at + 1));
        let address = starts.into_iter().find(|at| is_address(&core[*at..]));
        if let Some(at) = address {
            return format!("{}<address>{after}", self.parts(&core[..at]));
        }
        if core.contains('@') {
            return format!("<name>{after}");
        }
        format!("{}{after}", self.parts(core))
    }

    /// What stands between colons.
    fn parts(&self, text: &str) -> String {
        let part = |part: &str| match secret(part) {
            Some(kind) => kind.to_owned(),
            None => self.without_names(part),
        };
        text.split(':').map(part).collect::<Vec<_>>().join(":")
    }

    fn without_names(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for name in self.names.iter().filter(|name| name.len() > 1) {
            let lower = text.to_ascii_lowercase(); // of the same length
            let is_end = |c: Option<char>| !c.is_some_and(char::is_alphanumeric);
            let is_word =
                |at: usize| is_end(lower[..at].chars().next_back()) && is_end(lower[at + name.len()..].chars().next());
            let found: Vec<usize> =
                lower.match_indices(&name.to_ascii_lowercase()).map(|(at, _)| at).filter(|at| is_word(*at)).collect();
            for at in found.into_iter().rev() {
                text.replace_range(at..at + name.len(), "<name>");
            }
        }
        text
    }
}

fn is_plain(c: char) -> bool {
    c.is_alphanumeric() || "/._-~:\\+%@".contains(c)
}

/// An address of IPv6 (with a zone), of four or more groups of hexadecimal digits, or of a network interface.
fn is_address(text: &str) -> bool {
    let bare = text.split('%').next().unwrap_or_default();
    let groups = |text: &str, separator: char, most: usize| {
        let groups: Vec<&str> = text.split(separator).collect();
        if groups.iter().all(|group| (1..=most).contains(&group.len()) && is_hex(group)) { groups.len() } else { 0 }
    };
    let has_digit = text.bytes().any(|c| c.is_ascii_digit());
    (bare != "::" && bare.parse::<Ipv6Addr>().is_ok())
        || groups(bare, ':', 4) >= 4
        || groups(bare, '-', 2) >= 6
        || (groups(bare, '.', 4) == 3 && bare.len() == 14 && has_digit)
}

/// What a word without colons is that should not be told.
fn secret(word: &str) -> Option<&'static str> {
    let word = word.to_ascii_lowercase();
    let has_digit = |text: &str| text.bytes().any(|c| c.is_ascii_digit());
    // Four numbers of an IPv4 address in a row, whatever stands around them.
    let has_four = |separator: char| {
        let parts: Vec<&str> = word.split(separator).collect();
        parts.windows(4).any(|four| four.join(".").parse::<Ipv4Addr>().is_ok())
    };
    if has_four('.') {
        return Some("<address>");
    }
    let labels: Vec<&str> = word.split('.').collect();
    let is_name = labels.len() > 1 && labels.iter().all(|label| !label.is_empty());
    if has_four('-') || (is_name && labels.last().is_some_and(|last| DOMAINS.contains(last))) {
        return Some("<name>");
    }
    // `i-0abc…`, `vol-…`, `eni-…`; a serial number; a UUID. Of a name with dots, any label.
    let is_id = |label: &&str| {
        let (kind, id) = label.split_once('-').unwrap_or(("", label));
        let of_kind = !kind.is_empty() && kind.bytes().all(|c| c.is_ascii_lowercase());
        let whole: String = label.split('-').collect();
        (of_kind && id.len() >= 8 && is_hex(id) && has_digit(id))
            || (whole.len() >= 12 && is_hex(&whole) && has_digit(&whole))
    };
    labels.iter().any(is_id).then_some("<id>")
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|c| c.is_ascii_hexdigit())
}

/// Ends of host names.
const DOMAINS: [&str; 22] = [
    "internal",
    "local",
    "localdomain",
    "localhost",
    "lan",
    "home",
    "corp",
    "intra",
    "arpa",
    "com",
    "net",
    "org",
    "edu",
    "gov",
    "io",
    "ai",
    "dev",
    "cloud",
    "cn",
    "de",
    "uk",
    "eu",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> String {
        Redaction { names: vec!["Build-7".into(), "jane".into(), "me".into()] }.of(text)
    }

    #[test]
    fn each_kind_of_secret_goes_wherever_it_stands() {
        for (secret, kind) in [
            ("10.0.0.7", "<address>"),
            ("10.0.0.7:8080", "<address>:8080"),
            ("host=169.254.169.254", "host=<address>"),
            ("(192.168.1.20)", "(<address>)"),
            ("peer:10.0.0.7", "peer:<address>"),
            ("fe80::1", "<address>"),
            ("::1", "<address>"),
            ("fe80::8a:1%eth0", "<address>"),
            ("[2001:db8::7]:22", "[<address>]:22"),
            ("inet6:2001:db8:0:0:0:0:0:7", "inet6:<address>"),
            ("::ffff:10.0.0.7", "<address>"),
            ("ether=0a:1B:2c:3d:4e:5f", "ether=<address>"),
            ("0a-1b-2c-3d-4e-5f", "<address>"),
            ("0a1b.2c3d.4e5f", "<address>"),
            ("ip-10-0-0-7", "<name>"),
            ("ip-10-0-0-7.us-west-2.compute.internal", "<name>"),
            ("ec2-3-4-5-6.compute-1.amazonaws.com:443", "<name>:443"),
            ("\"Node3.Cluster.Local\"", "\"<name>\""),
            ("build-7", "<name>"),
            ("BUILD-7.", "<name>."),
            ("user=jane;", "user=<name>;"),
            ("jane@example.com", "<name>"),
            ("i-0abc123def4567890", "<id>"),
            ("id=i-1234abcd,", "id=<id>,"),
            ("vol-0abc123def4567890:", "<id>:"),
            ("i-0abc123def4567890.us-west-2.x", "<id>"),
            ("123e4567-e89b-12d3-a456-426614174000", "<id>"),
            ("0123456789abcdef", "<id>"),
            ("123456789012", "<id>"),
            ("/home/jane/x", "<path>"),
            ("at:/tmp/a(b)/c:", "<path>:"),
            ("C:\\Users\\jane", "<path>"),
            ("~/x", "<path>"),
        ] {
            assert_eq!(told(secret), kind);
            assert_eq!(told(&format!("it says {secret}  here")), format!("it says {kind} here"));
        }
    }

    #[test]
    fn words_of_the_probe_stay() {
        for text in [
            "NCC_EUOC002: scatter is not supported, off by 2.00e-3",
            "libnrt 2.31.24 \"2.99.0+FAKE\", neuronx-cc 2.21.33363.0+82129205",
            "probe_write_scatter_chunk: expected f32[4,64], found bf16[4,64]; at 12:34:56 on 2026-11-30",
            "status 1006 (NRT_EXEC_OOB): index 40 is out of bounds; it took some time: 0.25 ms",
            "std::io error of module.neff, see log-neuron-cc.txt: a::",
            "mean 12.75 %, F8E4M3FN, dynamic-update-slice",
        ] {
            assert_eq!(told(text), text);
        }
    }
}
