//! Rank 5, the door: the `repblk` command.
//!
//! `args` is what can be typed, `exit` how it ends. `init`, `serve` and `config` work on the configuration and the
//! disk, `attach` and `detach` belong to the database host; everything else is a question to the daemon over its control socket. Every refusal names its rule and the way
//! out; a reader that closes early is no error.

mod args;
mod attach;
mod cert;
mod client;
mod command;
mod exit;
mod local;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use self::args::{Cli, Command, ConfigCommand, Order, Switch};
use self::exit::{Exit, Stop};
use crate::daemon::control::protocol::Verb;

/// Runs the command of this process's arguments.
#[must_use]
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Also --help and --version, which are no errors; a closed reader is none either.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage.into() } else { Exit::Done.into() };
        }
    };
    match execute(cli) {
        Ok(()) => Exit::Done.into(),
        Err(stop) => {
            if !stop.message.is_empty() {
                eprintln!("repblk: {}", stop.message);
            }
            stop.exit.into()
        }
    }
}

fn execute(cli: Cli) -> Result<(), Stop> {
    // Keys and what clients write are in the memory of some commands, and nobody else's business in all.
    crate::dataplane::keep_memory_private();
    let place = local::Place { config: cli.config, node: cli.node };
    let (target, verb) = match cli.command {
        Command::Init { volume, force, adopt } => return local::init(&place, volume.as_deref(), force, adopt),
        Command::Serve { log_format, log_level } => return local::serve(&place, log_format, &log_level),
        Command::Agent { log_format, log_level } => return local::agent(&place, log_format, &log_level),
        Command::Config { command: ConfigCommand::Check } => return local::check(&place),
        Command::Cert { command } => return cert::cert(&place, command),
        Command::Completions { shell } => return completions(shell),
        Command::Attach { volume, status: true, json, folder, .. } => {
            return attach::status(&place, volume.as_deref(), &folder, json);
        }
        Command::Attach { volume, on_doubt, device, keys, name, folder, log_format, log_level, .. } => {
            let how = attach::How { on_doubt, device, keys, name, folder };
            return attach::attach(&place, volume.as_deref(), how, (log_format, &log_level));
        }
        Command::Detach { volume, folder } => return attach::detach(&place, volume.as_deref(), &folder),
        Command::Status { json, watch } => return command::status(&control(&place)?, json, watch),
        Command::Events { json } => return command::events(&control(&place)?, json),
        Command::Resync { target, full, discard_local, unsaved, watch } => {
            let control = control(&place)?;
            command::tell(&control, &target, Verb::Resync { full, discard_local, unsaved })?;
            return if watch { command::watch_resync(&control, &target) } else { Ok(()) };
        }
        Command::Promote { target, force, peer_is_down } => (target, Verb::Promote { force, peer_is_down }),
        Command::Demote { target, disconnect_clients } => (target, Verb::Demote { disconnect_clients }),
        Command::Plan { volume, json } => return command::plan(&control(&place)?, volume, json),
        Command::History { volume, json } => return command::history(&control(&place)?, volume, json),
        Command::Maintenance { switch, target } => (target, Verb::Maintenance { on: switch == Switch::On }),
        Command::Services { order, target } => (target, Verb::Services { on: order == Order::Start }),
        Command::Switchover { target } => (target, Verb::Switchover),
        Command::Connect { target } => (target, Verb::Connect),
        Command::Disconnect { target } => (target, Verb::Disconnect),
        Command::Pause { target } => (target, Verb::Pause),
        Command::Resume { target } => (target, Verb::Resume),
    };
    command::tell(&control(&place)?, &target, verb)
}

fn control(place: &local::Place) -> Result<PathBuf, Stop> {
    let config = place.load()?;
    Ok(place.choose(&config)?.control.clone())
}

fn completions(shell: clap_complete::Shell) -> Result<(), Stop> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "repblk", &mut script);
    std::io::Write::write_all(&mut std::io::stdout(), &script).map_err(Stop::from)
}
