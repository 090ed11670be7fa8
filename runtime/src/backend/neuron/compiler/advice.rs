//! What to do about an error code of the compiler.
//!
//! Codes and causes are those of aws-neuron-sdk `compiler/error-codes/`; the advice is what njoule's own options allow.

/// The first error code in a text: `EVRF031`, with or without `NCC_` before it.
pub(super) fn code_in(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let is_word = |b: u8| b.is_ascii_alphanumeric();
    (0..bytes.len().saturating_sub(LEN - 1)).find_map(|at| {
        // All of it is ASCII, so the slice falls on characters.
        let code = bytes.get(at..at + LEN)?;
        let shape =
            code[0] == b'E' && code[..4].iter().all(u8::is_ascii_uppercase) && code[4..].iter().all(u8::is_ascii_digit);
        let starts = at == 0 || !is_word(bytes[at - 1]);
        let ends = bytes.get(at + LEN).is_none_or(|b| !is_word(*b));
        (shape && starts && ends).then(|| &text[at..at + LEN])
    })
}

/// Whether the text says that something was killed, as a shell or a wrapper says it of a child that ran out of memory: the
/// word alone, or at the end of a line, or behind the child's number.
pub(super) fn says_killed(text: &str) -> bool {
    text.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |word: &&str| word.bytes().all(|b| b.is_ascii_digit());
        words.last() == Some(&"Killed") || words.windows(2).any(|pair| number(&pair[0]) && pair[1] == "Killed")
    })
}

/// What to do about it.
pub(super) fn of(code: &str) -> &'static str {
    let exact = TABLE.iter().find(|(known, _)| *known == code);
    exact
        .map_or("see the log, and AWS's page of this code (aws-neuron-sdk, compiler/error-codes)", |(_, advice)| advice)
}

/// `EVRF031`.
const LEN: usize = 7;

const TABLE: [(&str, &str); 31] = [
    ("EOOM001", TOO_LARGE),
    ("EOOM002", TOO_LARGE),
    ("EVRF009", TOO_LARGE),
    ("EXSP001", TOO_LARGE),
    ("EBVF030", TOO_MANY),
    ("EVRF007", TOO_MANY),
    ("EXTP004", TOO_MANY),
    ("EARG001", "the logical-core size does not fit the chip: only trn2 takes --lnc 2; leave it out on inf2 and trn1"),
    ("EVRF001", OPERATOR),
    ("EUOC002", OPERATOR),
    ("EVRF004", BUG),
    ("EVRF005", BUG),
    ("EVRF006", BUG),
    ("EVRF013", BUG),
    ("EVRF015", OPERATOR),
    ("EVRF019", BUG),
    ("EVRF031", BUG),
    ("EVRF035", BUG),
    ("EVRF051", BUG),
    ("EVRF052", BUG),
    ("EVRF056", BUG),
    ("EVRF059", BUG),
    ("EVRF060", BUG),
    ("EVRF061", BUG),
    ("EVRF062", BUG),
    ("EVRF063", BUG),
    ("EVRF064", BUG),
    ("EMOD025", BUG),
    ("ESFH002", BUG),
    ("EHCA005", OPERATOR),
    ("EBIR023", "the compiler failed inside; another optimisation level (--optlevel) may pass, or another SDK"),
];

const TOO_LARGE: &str = "the module needs more device memory than a core has: plan fewer rows, shorter sequences, int8 \
                         weights or cache, or more cores";
const TOO_MANY: &str = "the module has more instructions than the compiler takes: use smaller buckets, or more cores per \
                        model";
const OPERATOR: &str =
    "this compiler lacks an operator or a form of it: choose another form with --profile, or another SDK";
const BUG: &str = "njoule should not emit such a module: please report it with the log";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_found_with_or_without_its_prefix_and_nothing_else_is_taken_for_one() {
        assert_eq!(code_in("[ERROR] NCC_EOOM001: out of memory"), Some("EOOM001"));
        assert_eq!(code_in("error EVRF031"), Some("EVRF031"));
        for no in ["", "EVRF", "EVRF03", "XEVRF031", "EVRF0311", "E1RF031", "ünïcode EVRFé31"] {
            assert_eq!(code_in(no), None, "{no}");
        }
        assert!(of("EOOM001").contains("device memory") && of("EZZZ999").contains("see the log"));
        for code in ["EVRF015", "EVRF059", "EVRF061", "EVRF063"] {
            assert!(!of(code).contains("see the log, and"), "{code}");
        }
    }

    #[test]
    fn a_child_that_was_killed_is_told_from_words_about_it() {
        for yes in ["Killed", "a\nKilled\nb", "cc: line 3: 4711 Killed   python3 -m neuronxcc", "worker 3: Killed"] {
            assert!(says_killed(yes), "{yes}");
        }
        for no in ["", "killed", "Killed nothing", "it was Killed by you"] {
            assert!(!says_killed(no), "{no}");
        }
    }
}
