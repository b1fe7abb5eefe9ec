//! The command line program: arguments, messages and exit codes. Each subcommand is in the file with its name.

mod adapters;
mod args;
mod bench;
mod check;
mod check_picture;
mod describe;
mod devices;
mod dtypes;
mod folders;
mod from;
mod gauge;
mod generate;
mod habits;
mod html;
mod interrupt;
mod jobs;
mod model;
mod names;
mod plan;
mod progress;
mod prompts;
mod run;

use std::{io::Write, process::ExitCode};

use clap::{
    CommandFactory, Parser,
    error::{ContextKind, ContextValue, ErrorKind},
};
use sdshard::{
    backend::cpu,
    device_map::size::format_bytes,
    error::{Error, ErrorScope, Result, printable},
};
use tracing_subscriber::EnvFilter;

use self::{
    args::{Cli, Command, LogArgs},
    interrupt::Interrupt,
    progress::Console,
};

/// First words that are reserved for future subcommands, so that no script uses them as prompts.
const RESERVED: [&str; 3] = ["serve", "convert", "completions"];

/// The address space in bytes below which allocations fail before anything is planned, which ends the process.
const LEAST_ADDRESS_SPACE: u64 = 512 << 20;

/// Runs the program: parses the arguments, runs the command, prints errors, and returns the exit code.
pub fn main() -> ExitCode {
    let arguments = habits::with_hyphens(std::env::args_os().collect());
    if let Some(word) = RESERVED.iter().find(|word| arguments.get(1).is_some_and(|first| first == *word)) {
        let refused = Error::input(format!("`{word}` is not a subcommand yet, but will be one"))
            .hint(format!("as a prompt it goes after two dashes: sdshard -- {word}"));
        return report(&refused, None);
    }
    let dashes = arguments.iter().any(|argument| argument == "--");
    let mut cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(refused) => return not_parsed(&refused),
    };
    if let Some(refused) = command_as_prompt(&cli).filter(|_| !dashes) {
        return report(&refused, None);
    }
    cli.settle();
    let console = Console::new(cli.log.quiet);
    let ready = start_logging(&cli.log, &console).and_then(|()| check_environment());
    Interrupt::survive_size_limits();
    let Some(command) = &cli.command else {
        return match Interrupt::install() {
            Ok(interrupt) => {
                let outcome = ready
                    .and_then(|()| from::read(&mut cli.generate))
                    .and_then(|()| generate::run(&cli.generate, &console, &interrupt));
                exit(outcome, Some(&interrupt))
            }
            Err(error) => report(&error, None),
        };
    };
    // These commands have no file to finish, so a signal ends them with its default action.
    let outcome = ready.and_then(|()| match command {
        Command::Plan(args) => plan::run(args, &console),
        Command::Devices(args) => devices::run(args, &console),
        Command::Bench(args) => bench::run(args, &console),
    });
    exit(outcome, None)
}

fn exit(outcome: Result<()>, interrupt: Option<&Interrupt>) -> ExitCode {
    outcome.map_or_else(|error| report(&error, interrupt), |()| ExitCode::SUCCESS)
}

/// Prints an error and returns its exit code.
fn report(error: &Error, interrupt: Option<&Interrupt>) -> ExitCode {
    // If stderr is closed, the message cannot be shown.
    let _ = writeln!(std::io::stderr(), "error: {error}");
    match (error.scope(), interrupt.and_then(Interrupt::exit_code)) {
        (ErrorScope::Interrupted, Some(code)) => ExitCode::from(code),
        _ => ExitCode::from(error.exit_code()),
    }
}

/// Handles arguments that are invalid, or that ask for help or the version.
fn not_parsed(refused: &clap::Error) -> ExitCode {
    if !refused.use_stderr() {
        // If stdout is closed, the text cannot be shown.
        let _ = refused.print();
        return ExitCode::SUCCESS;
    }
    let flag = match (refused.kind(), refused.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(flag))) => flag.split('=').next(),
        _ => None,
    };
    if let Some(absent) = flag.and_then(habits::absent) {
        return report(&absent, None);
    }
    let message = refused.render().to_string();
    let _ = write!(std::io::stderr(), "{}", printable(&message));
    ExitCode::from(2)
}

/// The error for a prompt that is most likely a mistake: the name of a subcommand (`sdshard -q bench`), or a single
/// word that resembles one or is a command of other tools.
fn command_as_prompt(cli: &Cli) -> Option<Error> {
    if cli.command.is_some() {
        return None;
    }
    let root = <Cli as CommandFactory>::command();
    let prompts = &cli.generate.prompts;
    if let Some(word) = prompts.iter().find(|prompt| root.find_subcommand(prompt).is_some()) {
        let refused = Error::input(format!("`{word}` is a subcommand only as the first word"));
        return Some(
            refused.hint(format!("sdshard {word} ...; as a prompt it goes after two dashes: sdshard ... -- {word}")),
        );
    }
    let [word] = prompts.as_slice() else { return None };
    let subcommands: Vec<&str> = root.get_subcommands().map(clap::Command::get_name).collect();
    let command = habits::command(word, subcommands.iter().copied())?;
    let meant = match command {
        "help" | "version" => format!("sdshard --{command}"),
        "list" => "sdshard devices".into(),
        "benchmark" => "sdshard bench".into(),
        known if subcommands.contains(&known) => format!("sdshard {known}"),
        _ => "sdshard \"a red fox\"".into(),
    };
    let refused = Error::input(format!("is `{word}` meant as a prompt? sdshard has no such subcommand"));
    Some(refused.hint(format!("{meant}; as a prompt it goes after two dashes: sdshard -- {word}")))
}

/// Rejects invalid environment variables.
fn check_environment() -> Result<()> {
    if let Some(limit) = cpu::address_space_limit().filter(|limit| *limit < LEAST_ADDRESS_SPACE) {
        return Err(Error::input("the limit of address space is too small for the program itself")
            .found(format_bytes(limit))
            .hint(format!("ulimit -v {} or more", LEAST_ADDRESS_SPACE / 1024)));
    }
    cpu::path()?;
    cpu::threads::requested_threads()?;
    Ok(())
}

/// Sends log lines to stderr, above the progress bars: warnings, and more with `-v` or `RUST_LOG`.
fn start_logging(args: &LogArgs, console: &Console) -> Result<()> {
    let filter = match (std::env::var("RUST_LOG"), args.quiet, args.verbose) {
        (Ok(filter), _, _) if !filter.is_empty() => filter,
        (_, true, _) => "error".to_string(),
        (_, _, 0) => "warn".to_string(),
        (_, _, 1) => "warn,sdshard=info".to_string(),
        (_, _, 2) => "info,sdshard=debug".to_string(),
        _ => "debug,sdshard=trace".to_string(),
    };
    let filter = EnvFilter::try_new(&filter)
        .map_err(|e| Error::input(format!("RUST_LOG={filter}")).source(e).hint("RUST_LOG=sdshard=debug"))?;
    let console = console.clone();
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(move || console.log_writer());
    // Warnings among plain lines are printed without time and module.
    match std::env::var_os("RUST_LOG").is_none() && args.verbose == 0 {
        true => lines.without_time().with_target(false).init(),
        false => lines.init(),
    }
    Ok(())
}
