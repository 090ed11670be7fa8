//! The command line, as argparse reads it: `--flag value` or `--flag=value`, unknown flags refused, the last one counts.

use std::path::PathBuf;

use njoule_hlo::Target;

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `compile`.
    Compile(Arguments),
    /// `list-operators`.
    ListOperators,
    /// `--version`.
    Version,
}

/// Of `compile`: what has an effect here. The other flags are checked and dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arguments {
    /// The HloModuleProto.
    pub module: PathBuf,
    /// `--target`.
    pub target: Target,
    /// `--output`.
    pub output: PathBuf,
    /// `--lnc`; by default what the target has.
    pub lnc: u32,
    /// `--enable-fast-loading-neuron-binaries`.
    pub fast_loading: bool,
    /// `--logfile`.
    pub logfile: Option<PathBuf>,
    /// The whole line, for the log.
    pub line: String,
}

/// A command line that is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// Neither of the commands.
    #[error("argument command: invalid choice: '{0}' (choose from 'compile', 'list-operators')")]
    Command(String),
    /// Flags that the compiler does not document and AWS's code does not pass.
    #[error("unrecognized arguments: {0}")]
    Unknown(String),
    /// A flag that needs a value.
    #[error("argument {0}: expected one argument")]
    Value(&'static str),
    /// A flag that takes none.
    #[error("argument {flag}: ignored explicit argument '{value}'")]
    NoValue {
        /// The flag.
        flag: &'static str,
        /// What it was given.
        value: String,
    },
    /// A value that the flag does not take.
    #[error("argument {flag}: invalid choice: '{value}' (choose from {choices:?})")]
    Choice {
        /// The flag.
        flag: &'static str,
        /// What it was given.
        value: String,
        /// What it takes.
        choices: &'static [&'static str],
    },
    /// Something is missing.
    #[error("the following arguments are required: {0}")]
    Required(&'static str),
}

/// What a flag is followed by.
#[derive(Clone, Copy)]
enum Takes {
    Nothing,
    Anything,
    Number,
    OneOf(&'static [&'static str]),
    /// As many words as there are before the next flag.
    Words,
}

pub(super) fn parse(arguments: &[String]) -> Result<Command, UsageError> {
    let (command, rest) = arguments.split_first().ok_or(UsageError::Required("command"))?;
    match command.as_str() {
        "--version" => Ok(Command::Version),
        "list-operators" => {
            let (positional, _) = flags(rest)?;
            if positional.is_empty() {
                Ok(Command::ListOperators)
            } else {
                Err(UsageError::Unknown(positional.join(" ")))
            }
        }
        "compile" => compile(rest, arguments.join(" ")).map(Command::Compile),
        other if other.starts_with('-') => Err(UsageError::Unknown(other.to_owned())),
        other => Err(UsageError::Command(other.to_owned())),
    }
}

fn compile(rest: &[String], line: String) -> Result<Arguments, UsageError> {
    let (mut positional, given) = flags(rest)?;
    let last = |name: &str| given.iter().rev().find(|(n, _)| *n == name).map(|(_, v)| v.clone());
    if positional.is_empty() {
        return Err(UsageError::Required("INPUT"));
    }
    let module = PathBuf::from(positional.remove(0));
    if !positional.is_empty() {
        return Err(UsageError::Unknown(positional.join(" ")));
    }
    last("--framework").ok_or(UsageError::Required("--framework"))?;
    let target = match last("--target").ok_or(UsageError::Required("--target"))?.as_str() {
        "inf2" => Target::Inf2,
        "trn2" => Target::Trn2,
        _ => Target::Trn1, // trn1 and trn1n: the choices are checked
    };
    let default = if target == Target::Trn2 { 2 } else { 1 };
    Ok(Arguments {
        module,
        target,
        output: last("--output").ok_or(UsageError::Required("--output"))?.into(),
        lnc: last("--lnc").and_then(|v| v.parse().ok()).unwrap_or(default),
        fast_loading: last("--enable-fast-loading-neuron-binaries").is_some(),
        logfile: last("--logfile").map(PathBuf::from),
        line,
    })
}

type Given = Vec<(&'static str, String)>;

fn flags(arguments: &[String]) -> Result<(Vec<String>, Given), UsageError> {
    let (mut positional, mut given, mut unknown) = (vec![], vec![], vec![]);
    let mut rest = arguments.iter().peekable();
    while let Some(argument) = rest.next() {
        if !argument.starts_with('-') {
            positional.push(argument.clone());
            continue;
        }
        let (name, mut value) = match argument.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (argument.as_str(), None),
        };
        // `-O1`.
        let (name, short) = match name.strip_prefix("-O") {
            Some(level) if !level.is_empty() => ("-O", Some(level.to_owned())),
            _ => (name, None),
        };
        value = value.or(short);
        let Some((flag, takes)) = FLAGS.iter().find(|(flag, _)| flag.split('|').any(|alias| alias == name)) else {
            unknown.push(argument.clone());
            continue;
        };
        let flag = flag.split('|').next().unwrap_or(flag);
        let mut next = || rest.next_if(|v| !v.starts_with('-')).cloned();
        let value = match takes {
            Takes::Nothing => match value {
                Some(value) => return Err(UsageError::NoValue { flag, value }),
                None => String::new(),
            },
            Takes::Words => {
                let mut words: Vec<String> = value.into_iter().collect();
                while let Some(word) = next() {
                    words.push(word);
                }
                words.join(" ")
            }
            Takes::Anything => value.or_else(next).ok_or(UsageError::Value(flag))?,
            Takes::Number => {
                let value = value.or_else(next).ok_or(UsageError::Value(flag))?;
                if value.parse::<u64>().is_err() {
                    return Err(UsageError::Choice { flag, value, choices: &["a number"] });
                }
                value
            }
            Takes::OneOf(choices) => {
                let value = value.or_else(next).ok_or(UsageError::Value(flag))?;
                if !choices.contains(&value.as_str()) {
                    return Err(UsageError::Choice { flag, value, choices });
                }
                value
            }
        };
        given.push((flag, value));
    }
    if unknown.is_empty() { Ok((positional, given)) } else { Err(UsageError::Unknown(unknown.join(" "))) }
}

/// Flags that AWS documents or passes itself; other names of one behind `|`.
const FLAGS: [(&str, Takes); 26] = [
    ("--framework", Takes::OneOf(&["XLA"])),
    ("--target", Takes::OneOf(&["inf2", "trn1", "trn1n", "trn2"])),
    ("--output", Takes::Anything),
    ("--model-type", Takes::OneOf(&["generic", "transformer", "unet-inference"])),
    ("--auto-cast", Takes::OneOf(&["none", "matmult", "all"])),
    ("--auto-cast-type", Takes::OneOf(&["bf16", "fp16", "tf32", "fp8_e4m3"])),
    ("--optlevel|-O", Takes::OneOf(&["1", "2", "3"])),
    ("--lnc|--logical-nc-config", Takes::OneOf(&["1", "2"])),
    ("--enable-mixed-precision-accumulation", Takes::Nothing),
    ("--disable-mixed-precision-accumulation", Takes::Nothing),
    ("--enable-saturate-infinity", Takes::Nothing),
    ("--enable-fast-loading-neuron-binaries", Takes::Nothing),
    ("--enable-fast-context-switch", Takes::Nothing),
    ("--native-int64", Takes::OneOf(&["enabled", "disabled"])),
    ("--implicit-integer-downcast", Takes::OneOf(&["enabled", "disabled"])),
    ("--distribution-strategy", Takes::OneOf(&["llm-training"])),
    ("--logfile", Takes::Anything),
    ("--verbose", Takes::OneOf(&["info", "warning", "error", "critical", "debug"])),
    ("--pipeline", Takes::Words),
    ("--execute-repetition", Takes::Number),
    ("--hbm-scratchpad-page-size", Takes::Number),
    ("--tensorizer-options", Takes::Anything),
    ("--internal-hlo2tensorizer-options", Takes::Anything),
    ("--experimental-unsafe-fp8e4m3fn-as-fp8e4m3", Takes::Nothing),
    ("--enable-internal-neff-wrapper", Takes::Nothing),
    ("--enable-ccop-compute-overlap", Takes::Nothing),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, UsageError> {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn njoules_command_line_is_taken() {
        let line = "compile m.pb --framework XLA --target trn2 --model-type transformer --auto-cast=none -O1 --lnc 1 \
                    --verbose warning --logfile log.txt --output m.neff --pipeline compile SaveTemps -O=2";
        let Ok(Command::Compile(a)) = parsed(line) else { panic!("{:?}", parsed(line)) };
        assert_eq!((a.target, a.lnc, a.fast_loading), (Target::Trn2, 1, false));
        assert_eq!((a.module, a.output, a.logfile), ("m.pb".into(), "m.neff".into(), Some("log.txt".into())));
    }

    #[test]
    fn what_argparse_refuses_is_refused() {
        let base = "compile m.pb --framework XLA --target inf2 --output o";
        for (more, want) in [
            ("--frobnicate", "unrecognized arguments: --frobnicate"),
            ("extra", "unrecognized arguments: extra"),
            ("--auto-cast maybe", "argument --auto-cast: invalid choice: 'maybe'"),
            ("--logfile", "argument --logfile: expected one argument"),
            ("-O7", "argument --optlevel: invalid choice: '7'"),
            ("--enable-saturate-infinity=1", "argument --enable-saturate-infinity: ignored explicit argument '1'"),
        ] {
            let error = parsed(&format!("{base} {more}")).unwrap_err().to_string();
            assert!(error.starts_with(want), "{error}");
        }
        for (line, want) in [
            ("compile m.pb --framework XLA --output o", "required: --target"),
            ("compile --framework XLA --target inf2 --output o", "required: INPUT"),
            ("compile m.pb --framework XLA --target inf2", "required: --output"),
            ("frob", "invalid choice: 'frob'"),
            ("", "required: command"),
        ] {
            let error = parsed(line).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
        assert_eq!(parsed("list-operators --framework XLA"), Ok(Command::ListOperators));
        assert_eq!(parsed("--version"), Ok(Command::Version));
    }
}
