//! Grammars in llama.cpp's and vLLM's notation (GBNF: `root ::= "a" | [0-9]+`), as one regular expression.
//!
//! Only those whose rules do not refer to themselves: they describe a regular language, which a regular expression says
//! exactly. Lark, which llguidance reads, cuts text into longest words first, so that rules taken over one by one could
//! forbid what the grammar allows.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::CharIndices;

/// Why a grammar cannot be taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum GbnfError {
    /// It is not written as it should be.
    #[error("the grammar is read as EBNF (name ::= ...), line {line}: {what}")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// It is no regular language.
    #[error("the rule {0} refers to itself: EBNF is taken without that; write the grammar in Lark (start: ...)")]
    Recursive(String),
    /// A name without a rule.
    #[error("the grammar has no rule {0}")]
    NoRule(String),
    /// The expression is out of proportion.
    #[error("the rules put together have more than {0} bytes; write the grammar in Lark (start: ...)")]
    TooLarge(usize),
}

/// Whether a grammar begins with a rule in this notation.
pub fn is_gbnf(grammar: &str) -> bool {
    let first = grammar.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    let name = first.and_then(|line| line.split_once("::=")).map(|(name, _)| name.trim());
    name.is_some_and(|name| !name.is_empty() && name.chars().all(in_name))
}

/// The expression of the rule `root`, of at most `most` bytes.
pub fn regex(grammar: &str, most: usize) -> Result<String, GbnfError> {
    let rules = Reader { chars: grammar.char_indices().peekable(), text: grammar, depth: 0 }.rules()?;
    let mut expander = Expander { rules: &rules, done: BTreeMap::new(), most };
    expander.rule("root", 0)
}

/// What a rule is made of.
#[derive(Debug)]
enum Node {
    /// An expression that stands for itself.
    Text(String),
    Rule(String),
    Sequence(Vec<Node>),
    Choice(Vec<Node>),
    /// The node, as often as this says.
    Repeat(Box<Node>, String),
}

struct Reader<'a> {
    chars: Peekable<CharIndices<'a>>,
    text: &'a str,
    depth: usize,
}

impl Reader<'_> {
    fn rules(&mut self) -> Result<BTreeMap<String, Node>, GbnfError> {
        let mut rules = BTreeMap::new();
        loop {
            self.space();
            if self.chars.peek().is_none() {
                return Ok(rules);
            }
            let name = self.name();
            if name.is_empty() || !self.takes("::=") {
                return self.wrong("a rule is written name ::= ...");
            }
            let body = self.choice()?;
            if let Some((_, c)) = self.chars.peek() {
                // Only the name of the next rule may follow.
                if !in_name(*c) {
                    let what = format!("{c:?} belongs to nothing");
                    return self.wrong(&what);
                }
            }
            if rules.insert(name.clone(), body).is_some() {
                return self.wrong(&format!("the rule {name} is there twice"));
            }
        }
    }

    fn choice(&mut self) -> Result<Node, GbnfError> {
        let mut all = vec![self.sequence()?];
        while self.takes("|") {
            all.push(self.sequence()?);
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Node::Choice(all) })
    }

    fn sequence(&mut self) -> Result<Node, GbnfError> {
        let mut all = Vec::new();
        loop {
            self.space();
            let node = match self.chars.peek().copied() {
                Some((_, '"')) => {
                    self.chars.next();
                    self.literal()?
                }
                Some((_, '[')) => {
                    self.chars.next();
                    self.class()?
                }
                Some((_, '.')) => {
                    self.chars.next();
                    Node::Text("(?s:.)".into())
                }
                Some((_, '(')) => {
                    self.chars.next();
                    self.depth += 1;
                    if self.depth > MAX_DEPTH {
                        return self.wrong("parentheses are nested too deep");
                    }
                    let inner = self.choice()?;
                    self.depth -= 1;
                    if !self.takes(")") {
                        return self.wrong("a closing parenthesis is missing");
                    }
                    inner
                }
                Some((at, c)) if in_name(c) => {
                    let rest = self.text[at..].trim_start_matches(in_name).trim_start();
                    if rest.starts_with("::=") {
                        return Ok(Node::Sequence(all));
                    }
                    Node::Rule(self.name())
                }
                Some((_, '\'')) => return self.wrong("strings stand in double quotes"),
                _ => return Ok(Node::Sequence(all)),
            };
            all.push(self.repeated(node)?);
        }
    }

    /// What follows a node: `*`, `+`, `?`, `{m}`, `{m,}` or `{m,n}`.
    fn repeated(&mut self, node: Node) -> Result<Node, GbnfError> {
        let Some((at, c)) = self.chars.peek().copied() else { return Ok(node) };
        let times = match c {
            '*' | '+' | '?' => &self.text[at..=at],
            '{' => {
                let Some(end) = self.text[at..].find('}') else { return self.wrong("a closing brace is missing") };
                let times = &self.text[at..=at + end];
                let numbers = times.trim_matches(['{', '}']).split(',').map(str::trim);
                let is_number = |number: &str| number.len() <= 6 && number.bytes().all(|b| b.is_ascii_digit());
                let sound = numbers.clone().count() <= 2 && numbers.clone().all(is_number);
                if !sound || numbers.clone().next().is_none_or(str::is_empty) {
                    return self.wrong("a repetition is written {2}, {2,} or {2,3}");
                }
                times
            }
            _ => return Ok(node),
        };
        self.skip(times.chars().count());
        let times: String = times.split_whitespace().collect();
        Ok(Node::Repeat(Box::new(node), times))
    }

    /// Behind the opening quote.
    fn literal(&mut self) -> Result<Node, GbnfError> {
        let mut text = String::new();
        loop {
            match self.chars.next() {
                Some((_, '"')) => return Ok(Node::Text(text)),
                Some((_, '\\')) => push(&mut text, self.escaped()?),
                Some((_, '\n')) | None => return self.wrong("a closing quote is missing"),
                Some((_, c)) => push(&mut text, c),
            }
        }
    }

    /// Behind the opening bracket.
    fn class(&mut self) -> Result<Node, GbnfError> {
        let mut text = String::from("[");
        if self.chars.next_if(|(_, c)| *c == '^').is_some() {
            text.push('^');
        }
        let opening = text.len();
        let mut first = None;
        loop {
            let c = match self.chars.next() {
                Some((_, ']')) if text.len() > opening => {
                    text.push(']');
                    return Ok(Node::Text(text));
                }
                Some((_, ']')) => return self.wrong("a class of characters is empty"),
                Some((at, '-')) if first.is_some() && !self.text[at + 1..].starts_with(']') => {
                    let last = match self.chars.next() {
                        Some((_, '\\')) => self.escaped()?,
                        Some((_, c)) => c,
                        None => return self.wrong("a closing bracket is missing"),
                    };
                    if first.is_some_and(|first| first > last) {
                        return self.wrong("a range of characters ends before it begins");
                    }
                    text.push('-');
                    push_hex(&mut text, last);
                    first = None;
                    continue;
                }
                Some((_, '\\')) => self.escaped()?,
                Some((_, '\n')) | None => return self.wrong("a closing bracket is missing"),
                Some((_, c)) => c,
            };
            push_hex(&mut text, c);
            first = Some(c);
        }
    }

    /// Behind a backslash.
    fn escaped(&mut self) -> Result<char, GbnfError> {
        let digits = match self.chars.next() {
            Some((_, 'n')) => return Ok('\n'),
            Some((_, 'r')) => return Ok('\r'),
            Some((_, 't')) => return Ok('\t'),
            Some((_, 'x')) => 2,
            Some((_, 'u')) => 4,
            Some((_, 'U')) => 8,
            Some((_, c)) if c.is_ascii_punctuation() => return Ok(c),
            _ => return self.wrong("a backslash stands before n, r, t, x, u, U or a mark"),
        };
        let text: String = (0..digits).filter_map(|_| self.chars.next()).map(|(_, c)| c).collect();
        match u32::from_str_radix(&text, 16).ok().filter(|_| text.len() == digits).and_then(char::from_u32) {
            Some(c) => Ok(c),
            None => self.wrong("an escaped character has the wrong digits"),
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some((_, c)) = self.chars.next_if(|(_, c)| in_name(*c)) {
            name.push(c);
        }
        name
    }

    /// Takes `mark` and the space before it, if it comes next.
    fn takes(&mut self, mark: &str) -> bool {
        self.space();
        let comes = self.chars.peek().is_some_and(|(at, _)| self.text[*at..].starts_with(mark));
        if comes {
            self.skip(mark.chars().count());
        }
        comes
    }

    fn skip(&mut self, characters: usize) {
        for _ in 0..characters {
            self.chars.next();
        }
    }

    /// White space and comments.
    fn space(&mut self) {
        while let Some((_, c)) = self.chars.next_if(|(_, c)| c.is_whitespace() || *c == '#') {
            if c == '#' {
                while self.chars.next_if(|(_, c)| *c != '\n').is_some() {}
            }
        }
    }

    fn wrong<T>(&mut self, what: &str) -> Result<T, GbnfError> {
        let at = self.chars.peek().map_or(self.text.len(), |(at, _)| *at);
        let line = self.text[..at].matches('\n').count() + 1;
        Err(GbnfError::Syntax { line, what: what.to_owned() })
    }
}

struct Expander<'a> {
    rules: &'a BTreeMap<String, Node>,
    /// Expressions of rules; `None` of those that are being made.
    done: BTreeMap<&'a str, Option<String>>,
    most: usize,
}

impl<'a> Expander<'a> {
    fn rule(&mut self, name: &str, depth: usize) -> Result<String, GbnfError> {
        let Some((name, body)) = self.rules.get_key_value(name) else { return Err(GbnfError::NoRule(name.into())) };
        match self.done.get(name.as_str()) {
            Some(Some(done)) => return Ok(done.clone()),
            // So many rules within each other are as good as endless.
            Some(None) => return Err(GbnfError::Recursive(name.clone())),
            None if depth > MAX_DEPTH => return Err(GbnfError::TooLarge(self.most)),
            None => drop(self.done.insert(name, None)),
        }
        let mut text = String::new();
        self.write(body, depth, &mut text)?;
        self.done.insert(name, Some(text.clone()));
        Ok(text)
    }

    fn write(&mut self, node: &'a Node, depth: usize, out: &mut String) -> Result<(), GbnfError> {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Rule(name) => {
                let text = self.rule(name, depth + 1)?;
                group(out, &text);
            }
            Node::Sequence(all) => {
                for node in all {
                    match node {
                        Node::Choice(_) => self.write_group(node, depth, out)?,
                        node => self.write(node, depth, out)?,
                    }
                }
            }
            Node::Choice(all) => {
                for (at, node) in all.iter().enumerate() {
                    if at > 0 {
                        out.push('|');
                    }
                    self.write(node, depth, out)?;
                }
            }
            Node::Repeat(node, times) => {
                self.write_group(node, depth, out)?;
                out.push_str(times);
            }
        }
        if out.len() > self.most { Err(GbnfError::TooLarge(self.most)) } else { Ok(()) }
    }

    fn write_group(&mut self, node: &'a Node, depth: usize, out: &mut String) -> Result<(), GbnfError> {
        out.push_str("(?:");
        self.write(node, depth, out)?;
        out.push(')');
        Ok(())
    }
}

fn group(out: &mut String, text: &str) {
    out.push_str("(?:");
    out.push_str(text);
    out.push(')');
}

fn in_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}

/// Appends a character that stands for itself.
fn push(out: &mut String, c: char) {
    if c.is_ascii_alphanumeric() || c == ' ' || c == '_' {
        out.push(c);
    } else {
        push_hex(out, c);
    }
}

fn push_hex(out: &mut String, c: char) {
    out.push_str(&format!("\\x{{{:x}}}", u32::from(c)));
}

/// Parentheses, and rules, within each other.
const MAX_DEPTH: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_become_one_expression() {
        let cases = [
            ("root ::= \"a\" | \"b\"", "a|b"),
            (
                "# first\nroot ::= sum # last\nsum ::= num (\" + \" num)*\nnum ::= [0-9]+",
                "(?:(?:(?:[\\x{30}-\\x{39}])+)(?: \\x{2b} (?:(?:[\\x{30}-\\x{39}])+))*)",
            ),
            ("root ::= [^\"\\\\\\n-]? .", "(?:[^\\x{22}\\x{5c}\\x{a}\\x{2d}])?(?s:.)"),
            ("root ::=\n  \"x\" |\n  \"y\"{2, 3}\n  | ()", "x|(?:y){2,3}|"),
            ("root ::= (\"a\" | \"b\") \"\\u00e9\\x41\"", "(?:a|b)\\x{e9}A"),
            ("a-b ::= \"1\" root ::= a-b a-b", "(?:1)(?:1)"),
        ];
        for (grammar, wanted) in cases {
            assert!(is_gbnf(grammar), "{grammar}");
            assert_eq!(regex(grammar, 1000).as_deref(), Ok(wanted), "{grammar}");
        }
    }

    #[test]
    fn what_is_none_is_told_by_its_line() {
        for (grammar, wanted) in [
            ("root ::= \"a", "line 1: a closing quote"),
            ("root ::= \"a\"\nb ::= (\"c\"", "line 2: a closing parenthesis"),
            ("root ::= [z-a]", "range"),
            ("root ::= []", "empty"),
            ("root ::= 'a'", "double quotes"),
            ("root ::= \"a\"{x}", "repetition"),
            ("root ::= \"\\q\"", "backslash"),
            ("root ::= \"a\" )", "belongs to nothing"),
            ("root ::= \"a\"\nroot ::= \"b\"", "twice"),
            ("root ::= \"(\" root \")\" | \"x\"", "root refers to itself"),
            ("root ::= a\na ::= b\nb ::= a", "a refers to itself"),
            ("root ::= other", "no rule other"),
            ("other ::= \"a\"", "no rule root"),
        ] {
            let error = regex(grammar, 1000).expect_err(grammar).to_string();
            assert!(error.contains(wanted), "{grammar}: {error}");
        }
        let doubling: String = (0..40).map(|i| format!("r{i} ::= r{0} r{0}\n", i + 1)).collect();
        assert_eq!(regex(&format!("root ::= r0\n{doubling}r40 ::= \"x\""), 1000), Err(GbnfError::TooLarge(1000)));
        let deep = format!("root ::= {}\"x\"{}", "(".repeat(100_000), ")".repeat(100_000));
        assert!(regex(&deep, 1000).is_err());
        for lark in ["start: \"::=\"", "", "%ignore /x/\na ::= b", "# a ::= b\nstart: \"x\""] {
            assert!(!is_gbnf(lark), "{lark}");
        }
    }
}
