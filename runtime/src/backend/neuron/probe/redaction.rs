//! What a report must not tell: paths, names of hosts and users, addresses, ids of instances, serial numbers.

/// Takes paths, host names, addresses, instance ids and serial numbers out of a text.
#[derive(Clone, Debug, Default)]
pub struct Redaction {
    /// Names to take out wherever they stand: the host's, the user's.
    pub names: Vec<String>,
}

impl Redaction {
    /// The text without them; words are otherwise kept, and blanks become single.
    pub fn of(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for name in self.names.iter().filter(|name| name.len() > 1) {
            text = text.replace(name.as_str(), "<name>");
        }
        let words: Vec<String> = text.split_whitespace().map(word).collect();
        words.join(" ")
    }
}

fn word(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-~:\\+%@".contains(c);
    let start = word.find(plain).unwrap_or(word.len());
    let end = word.rfind(plain).map_or(start, |at| at + word[at..].chars().next().map_or(0, char::len_utf8)).max(start);
    let (before, core, after) = (&word[..start], &word[start..end], &word[end..]);
    let core_of = core.trim_end_matches(['.', ':']);
    match secret(core_of) {
        Some(kind) => format!("{before}{kind}{}{after}", &core[core_of.len()..]),
        None => word.to_owned(),
    }
}

/// What a word is that should not be told.
fn secret(word: &str) -> Option<&'static str> {
    let hex = |text: &str| text.bytes().all(|c| c.is_ascii_hexdigit());
    let digits = word.bytes().filter(u8::is_ascii_digit).count();
    if word.contains('/') || word.contains('\\') || word.starts_with('~') {
        return Some("<path>");
    }
    let parts: Vec<&str> = word.split(['.', ':']).collect();
    let address = |separator| {
        let numbers: Vec<&str> = word.split(separator).collect();
        numbers.len() >= 4 && numbers.iter().all(|part| part.len() <= 4 && hex(part))
    };
    if word.starts_with("ip-") || word.contains('@') || word.ends_with(".internal") || word.ends_with(".com") {
        return Some("<name>");
    }
    if (address(':') || address('.')) && parts.len() >= 4 {
        return Some("<address>");
    }
    let id = word.strip_prefix("i-").unwrap_or(word);
    (id.len() >= 12 && hex(id) && digits > 0).then_some("<id>")
}
