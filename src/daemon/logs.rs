//! The log: human text by default, JSON on request, to standard error. One line for each change, none for a request.

use tracing_subscriber::EnvFilter;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Starts logging. `level` is `error`, `warn`, `info`, `debug`, `trace`, or a filter of `tracing-subscriber`.
///
/// # Errors
/// A sentence when `level` is no filter, or logging was started already.
pub fn start(format: LogFormat, level: &str) -> Result<(), String> {
    let filter =
        EnvFilter::try_new(level).map_err(|error| format!("--log-level {level:?} is no log level: {error}"))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Human => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
    };
    started.map_err(|error| format!("logging cannot be started: {error}"))
}
