//! The variables of flags: `NJOULE_` and any name of a flag, hidden ones included.
//!
//! Invariant: a variable that is set counts or is refused; two for the same flag that differ are refused.

use std::ffi::{OsStr, OsString};

use clap::builder::FalseyValueParser;
use clap::{Arg, ArgAction, Command};

use super::{ConfigError, UNSET, VERBS};

/// The command whose flags have their variables, as this process has them.
pub fn bound(mut command: Command, args: &[OsString]) -> Result<Command, ConfigError> {
    let mut wrong = None;
    let set = |name: &str| std::env::var_os(name);
    for verb in VERBS {
        command = command.mut_subcommand(verb, |verb| {
            verb.mut_args(|arg| match named(&arg, set) {
                Ok(Some(name)) => switch(arg).env(name).hide_env(true),
                Ok(None) => switch(arg),
                Err(error) => {
                    wrong.get_or_insert(error);
                    arg
                }
            })
        });
    }
    match wrong {
        Some(error) => Err(error),
        None => undoing(command, args),
    }
}

/// The name of the variable that says what a flag is, or would; `None` where a flag has none.
fn named(arg: &Arg, set: impl Fn(&str) -> Option<OsString>) -> Result<Option<String>, ConfigError> {
    let Some(long) = arg.get_long().filter(|long| !UNSET.contains(long)) else { return Ok(None) };
    let names = std::iter::once(long).chain(arg.get_all_aliases().unwrap_or_default()).map(variable);
    let mut given: Option<(String, OsString)> = None;
    for name in names {
        let Some(value) = set(&name) else { continue };
        match &given {
            Some((_, before)) if *before == value => {}
            Some((before, _)) => return Err(ConfigError::Variables(before.clone(), name)),
            None => given = Some((name, value)),
        }
    }
    Ok(Some(given.map_or_else(|| variable(long), |(name, _)| name)))
}

fn variable(long: &str) -> String {
    format!("NJOULE_{}", long.replace('-', "_").to_ascii_uppercase())
}

/// A switch takes `1` and `yes` too, as with the other variables.
fn switch(arg: Arg) -> Arg {
    let settable = arg.get_long().is_some_and(|long| !UNSET.contains(&long));
    if matches!(arg.get_action(), ArgAction::SetTrue) && settable {
        arg.value_parser(FalseyValueParser::new())
    } else {
        arg
    }
}

/// vLLM's switch for what another one turns off has a variable as well, which counts unless the command line says otherwise.
fn undoing(command: Command, args: &[OsString]) -> Result<Command, ConfigError> {
    let on = |name: &str| std::env::var_os(name).map(|value| !FALSE.iter().any(|no| value.eq_ignore_ascii_case(no)));
    let typed = || args.iter().any(|word| OFF.iter().any(|off| word == OsStr::new(off)));
    let offs = || OFF.map(|off| variable(&off[2..]));
    match on(ON) {
        None => Ok(command),
        Some(false) => Err(ConfigError::NotOff(ON, variable(&OFF[0][2..]))),
        Some(true) => match offs().into_iter().find(|off| on(off) == Some(true)) {
            Some(off) => Err(ConfigError::Variables(ON.to_owned(), off)),
            None if typed() => Ok(command),
            None => Ok(VERBS.iter().fold(command, |command, verb| {
                command.mut_subcommand(*verb, |verb| {
                    verb.mut_arg("enable_prefix_caching", |arg| {
                        arg.value_parser(FalseyValueParser::new()).env(ON).hide_env(true)
                    })
                })
            })),
        },
    }
}

const ON: &str = "NJOULE_ENABLE_PREFIX_CACHING";
const OFF: [&str; 2] = ["--no-prefix-cache", "--no-enable-prefix-caching"];
/// What clap takes for no.
const FALSE: [&str; 7] = ["", "n", "no", "f", "false", "off", "0"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_of_a_flag_is_a_variable_and_two_that_differ_are_refused() {
        let arg = Arg::new("c").long("context").visible_alias("max-len").alias("max-model-len");
        let named = |set: &[(&str, &str)]| {
            named(&arg, |name| set.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into()))
        };
        assert_eq!(named(&[]).unwrap().as_deref(), Some("NJOULE_CONTEXT"));
        assert_eq!(named(&[("NJOULE_MAX_MODEL_LEN", "9")]).unwrap().as_deref(), Some("NJOULE_MAX_MODEL_LEN"));
        let same = [("NJOULE_CONTEXT", "9"), ("NJOULE_MAX_LEN", "9")];
        assert_eq!(named(&same).unwrap().as_deref(), Some("NJOULE_CONTEXT"));
        let differ = named(&[("NJOULE_CONTEXT", "9"), ("NJOULE_MAX_LEN", "8")]).unwrap_err().to_string();
        assert!(differ.contains("NJOULE_CONTEXT and NJOULE_MAX_LEN"), "{differ}");
    }
}
