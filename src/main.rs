//! The `repblk` command.

fn main() -> std::process::ExitCode {
    repblk::cli::run()
}
