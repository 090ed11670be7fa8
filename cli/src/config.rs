//! What a flag is where the command line does not say: its variable, else the file that `--config` names, else its default.
//!
//! The file is TOML whose keys are the flags of `njoule serve`. Its values become the defaults of a second reading of the
//! command line, so they go through the same checks as flags.
//!
//! Invariant: a key that no flag has is refused by its name, with the nearest one.

mod variables;
mod words;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};
use serde_json::{Map, Value};

use crate::args::Cli;

/// A command line that was read.
#[derive(Debug)]
pub enum Parsed {
    /// What to do.
    Run(Box<Cli>),
    /// Only say what the settings are.
    Print(String),
}

/// Why a command line cannot be read.
#[derive(Debug)]
pub enum ParseError {
    /// The command line itself, also help and version; with the file whose settings were read with it.
    Clap(clap::Error, Option<PathBuf>),
    /// The file.
    Config(ConfigError),
}

/// Why a file of settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The system says no.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Too large to be settings.
    #[error("{} has more than {MAX_BYTES} bytes", .0.display())]
    TooLarge(PathBuf),
    /// Not TOML.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
    /// A key that no flag has.
    #[error("{}: there is no setting {key:?}{}", path.display(), nearest(near))]
    Unknown {
        /// The file.
        path: PathBuf,
        /// As it stands there.
        key: String,
        /// The flag with the most similar name.
        near: Option<String>,
    },
    /// Both spellings of a key.
    #[error("{}: {key} is set twice", path.display())]
    Twice {
        /// The file.
        path: PathBuf,
        /// The flag.
        key: String,
    },
    /// Two variables of one flag.
    #[error("{0} and {1} are set to different values, and mean the same flag: set one of them")]
    Variables(String, String),
    /// The variable of a flag that only turns something on.
    #[error("{0} turns nothing off: set {1}=1 for that")]
    NotOff(&'static str, String),
    /// A value that a flag cannot have.
    #[error("{}: {key} must be {wanted}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The flag.
        key: String,
        /// What it takes.
        wanted: &'static str,
    },
}

fn nearest(near: &Option<String>) -> String {
    near.as_ref().map_or(String::new(), |near| format!("; did you mean {near:?}?"))
}

/// Reads a command line, with variables and file.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Parsed, ParseError> {
    let mut args = words::spelled_out(args.into_iter().collect());
    let with_variables = |args: &[OsString]| variables::bound(Cli::command(), args).map_err(ParseError::Config);
    let mut command = with_variables(&args)?;
    let mut matches = command.try_get_matches_from_mut(&args).map_err(|error| ParseError::Clap(error, None))?;
    if let Some(better) = matches.subcommand_matches(SERVE).and_then(|serve| words::model_behind_names(&args, serve)) {
        args = better;
        command = with_variables(&args)?;
        matches = command.try_get_matches_from_mut(&args).map_err(|error| ParseError::Clap(error, None))?;
    }
    let file = match matches.subcommand_matches(SERVE).and_then(|serve| serve.get_one::<PathBuf>("config")) {
        None => BTreeMap::new(),
        Some(path) => {
            let path = path.clone();
            let file = read(&path, &Cli::command()).map_err(ParseError::Config)?;
            command = with_defaults(with_variables(&args)?, &file);
            matches = command.try_get_matches_from_mut(&args).map_err(|error| ParseError::Clap(error, Some(path)))?;
            file
        }
    };
    if let Some(serve) = matches.subcommand_matches(SERVE).filter(|serve| serve.get_flag("print_config")) {
        return Ok(Parsed::Print(print(&Cli::command(), serve, &file)));
    }
    let cli = Cli::from_arg_matches(&matches).map_err(|error| ParseError::Clap(error.format(&mut command), None))?;
    Ok(Parsed::Run(Box::new(cli)))
}

/// The file's values by the ids of their flags.
fn read(path: &Path, command: &Command) -> Result<BTreeMap<String, Vec<String>>, ConfigError> {
    let at = || path.to_owned();
    let mut text = String::new();
    // What a device or a pipe has cannot be asked beforehand.
    let read = File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
    match read {
        Ok(size) if size as u64 > MAX_BYTES => return Err(ConfigError::TooLarge(at())),
        Ok(_) => {}
        Err(source) => return Err(ConfigError::Read { path: at(), source }),
    }
    let table = toml(&text).map_err(|message| ConfigError::Syntax { path: at(), message })?;
    let serve = command.find_subcommand(SERVE);
    let flags: Vec<&Arg> =
        serve.map(|serve| serve.get_arguments().filter(|arg| settable(arg)).collect()).unwrap_or_default();
    let mut settings = BTreeMap::new();
    for (key, value) in table {
        let name = key.replace('_', "-");
        let named = |arg: &&&Arg| {
            let aliases = arg.get_all_aliases().unwrap_or_default();
            arg.get_long() == Some(&name) || aliases.iter().any(|alias| *alias == name)
        };
        let Some(arg) = flags.iter().find(named) else {
            let similar = |arg: &&Arg| arg.get_long().map(|long| (strsim::jaro_winkler(long, &name), long.to_owned()));
            let near = flags.iter().filter_map(similar).max_by(|a, b| a.0.total_cmp(&b.0));
            let near = near.filter(|(similar, _)| *similar > SIMILAR).map(|(_, long)| long);
            return Err(ConfigError::Unknown { path: at(), key, near });
        };
        let values =
            values(arg, value).map_err(|wanted| ConfigError::Value { path: at(), key: name.clone(), wanted })?;
        if settings.insert(arg.get_id().to_string(), values).is_some() {
            return Err(ConfigError::Twice { path: at(), key: name });
        }
    }
    Ok(settings)
}

/// A text as a table, within bounds of depth.
fn toml(text: &str) -> Result<Map<String, Value>, String> {
    // Its reader goes down with every bracket, and who drops a table with every dot of its keys.
    if is_deep(text) {
        return Err(format!("brackets or dotted keys are nested deeper than {MAX_DEPTH}"));
    }
    basic_toml::from_str(text).map_err(|error| error.to_string())
}

/// Whether brackets are nested, or a key has parts, beyond [`MAX_DEPTH`]; those in strings and comments do not count. Looks no
/// further than a reader of TOML would.
fn is_deep(text: &str) -> bool {
    let (mut rest, mut depth, mut dots) = (text, 0_usize, 0_usize);
    while let Some(c) = rest.chars().next() {
        match c {
            '#' => {
                rest = rest.find('\n').map_or("", |end| &rest[end..]);
                continue;
            }
            '"' | '\'' => {
                let Some(behind) = behind_string(rest, c) else { return false };
                rest = behind;
                continue;
            }
            '[' | '{' => (depth, dots) = (depth + 1, 0),
            ']' | '}' => (depth, dots) = (depth.saturating_sub(1), 0),
            '\n' | ',' | '=' => dots = 0,
            '.' => dots += 1,
            _ => {}
        }
        if depth > MAX_DEPTH || dots > MAX_DEPTH {
            return true;
        }
        rest = &rest[c.len_utf8()..];
    }
    false
}

/// What follows the string that `text` begins with; `None` if it does not end.
fn behind_string(text: &str, quote: char) -> Option<&str> {
    let long: String = [quote; 3].iter().collect();
    if let Some(mut rest) = text.strip_prefix(&long) {
        loop {
            let at = rest.find([quote, '\\'])?;
            rest = &rest[at..];
            if let Some(behind) = rest.strip_prefix(&long) {
                // Two quotes may stand before those that end it.
                return Some([2, 1].iter().find_map(|n| behind.strip_prefix(&long[..*n])).unwrap_or(behind));
            }
            let escapes = rest.starts_with('\\') && quote == '"';
            rest = &rest[1..];
            if escapes {
                rest = &rest[rest.chars().next()?.len_utf8()..];
            }
        }
    }
    let mut chars = text[1..].char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\n' => return None,
            '\\' if quote == '"' => drop(chars.next()),
            c if c == quote => return Some(&text[at + 2..]),
            _ => {}
        }
    }
    None
}

/// Values as they would be typed, or what the flag takes.
fn values(arg: &Arg, value: Value) -> Result<Vec<String>, &'static str> {
    let switch = matches!(arg.get_action(), ArgAction::SetTrue);
    let many = matches!(arg.get_action(), ArgAction::Append);
    let one = |value: Value| match value {
        Value::Bool(value) if switch => Ok(value.to_string()),
        _ if switch => Err("true or false"),
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Array(_) if many => Err("a string or an array of strings"),
        _ => Err("a single string or number"),
    };
    match value {
        Value::Array(values) if many => values.into_iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

fn with_defaults(command: Command, file: &BTreeMap<String, Vec<String>>) -> Command {
    command.mut_subcommand(SERVE, |serve| {
        file.iter().fold(serve, |serve, (id, values)| {
            // Its variable is read later, and goes before the file.
            if id == MODEL && std::env::var_os("NJOULE_MODEL").is_some() {
                return serve;
            }
            serve.mut_arg(id, |arg| arg.default_values(values.clone()))
        })
    })
}

/// The settings as a file, each with where it comes from.
fn print(command: &Command, matches: &ArgMatches, file: &BTreeMap<String, Vec<String>>) -> String {
    let mut out = String::from(
        "# njoule serve. A flag goes before its variable, that before the file, that before the default.\n",
    );
    let Some(serve) = command.find_subcommand(SERVE) else { return out };
    for arg in serve.get_arguments().filter(|arg| settable(arg)) {
        let (id, Some(long)) = (arg.get_id().as_str(), arg.get_long()) else { continue };
        let mut values: Vec<String> =
            matches.get_raw(id).into_iter().flatten().map(|value| value.to_string_lossy().into_owned()).collect();
        if matches!(arg.get_action(), ArgAction::SetTrue) {
            // `1` counts too.
            values = vec![matches.get_flag(id).to_string()];
        }
        let mut source = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => "flag",
            Some(ValueSource::EnvVariable) => "variable",
            Some(_) if file.contains_key(id) => "file",
            _ => "default",
        };
        if id == MODEL {
            let positional = matches.get_one::<String>("positional").cloned();
            let variable = std::env::var("NJOULE_MODEL").ok().filter(|_| source != "flag");
            if let Some((model, whence)) = positional.map(|m| (m, "flag")).or(variable.map(|m| (m, "variable"))) {
                (values, source) = (vec![model], whence);
            }
        }
        // What is taken for others' sake is shown where somebody has set it.
        if arg.is_hide_set() && source == "default" {
            continue;
        }
        let line = match &*values {
            [] => format!("# {long} is not set"),
            _ if SECRET.contains(&long) => format!("# {long}: {} by {source}, not shown", values.len()),
            [value] if !matches!(arg.get_action(), ArgAction::Append) => {
                format!("{long} = {}  # {source}", typed(value))
            }
            _ => {
                let all: Vec<String> = values.iter().map(|value| quoted(value)).collect();
                format!("{long} = [{}]  # {source}", all.join(", "))
            }
        };
        out.push_str(&line);
        out.push('\n');
    }
    out
}

/// A value as TOML has it.
fn typed(value: &str) -> String {
    let number = value.parse::<i64>().is_ok_and(|number| number.to_string() == value);
    if number || value == "true" || value == "false" { value.to_owned() } else { quoted(value) }
}

/// TOML's strings may be written as JSON's are.
fn quoted(value: &str) -> String {
    Value::from(value).to_string()
}

fn settable(arg: &Arg) -> bool {
    arg.get_long().is_some_and(|long| long == MODEL || !UNSET.contains(&long))
}

const SERVE: &str = "serve";
const VERBS: [&str; 2] = [SERVE, "batch"];
const MODEL: &str = "model";
/// Flags that are no settings, and the one whose variable is read elsewhere.
const UNSET: [&str; 10] = [
    "config",
    "print-config",
    "help",
    "version",
    "model",
    "input",
    "output",
    "errors",
    "json",
    // `--no-prefix-cache` is the setting, and this what undoes it.
    "enable-prefix-caching",
];
const SECRET: [&str; 1] = ["api-key"];
const MAX_BYTES: u64 = 64 << 10;
const MAX_DEPTH: usize = 16;
/// Names less alike than this are no misspelling.
const SIMILAR: f64 = 0.75;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_a_table_or_refused(text in "[\\[\\]{}=.,\"'#a-c0-9 \n]{0,80}|\\PC{0,40}") {
            let _ = toml(&text);
        }
    }

    #[test]
    fn brackets_do_not_reach_the_end_of_the_stack() {
        assert!(toml(&format!("a = {}", "[".repeat(60_000))).unwrap_err().contains("deeper"));
        assert!(toml("a = [[1], [2]]").is_ok());
        let dotted = "a.".repeat(30_000);
        for deep in [format!("{dotted}a = 1"), format!("[{dotted}a]"), format!("b = {{{dotted}a = 1}}")] {
            assert!(toml(&deep).unwrap_err().contains("deeper"));
        }
    }

    #[test]
    fn brackets_and_dots_in_strings_and_comments_do_not_count() {
        let many = "[".repeat(40);
        for (text, value) in [
            (format!("# {many}\na = \"{many}\"  # {many}"), many.clone()),
            (format!("a = '{many}'"), many.clone()),
            (format!("a = \"\"\"x\"{many}\\\"\"\"\"\n# \"\"\""), format!("x\"{many}\"")),
            (format!("a = '''{many}'''"), many.clone()),
            (format!("a = \"\\\"{many}\""), format!("\"{many}")),
            (format!("a = \"{}\"", ".".repeat(40)), ".".repeat(40)),
        ] {
            assert_eq!(toml(&text).unwrap()["a"], Value::from(value), "{text}");
            // Behind them they do.
            assert!(toml(&format!("{text}\nb = {many}")).unwrap_err().contains("deeper"), "{text}");
        }
    }

    #[test]
    fn a_file_without_an_end_is_too_large() {
        let endless = read(Path::new("/dev/zero"), &Cli::command());
        assert!(matches!(endless, Err(ConfigError::TooLarge(_))));
    }
}
