//! `snapgate hash-password`: from a password to the hash that goes into the configuration.

use std::io;
use std::io::BufRead;

use argon2::Argon2;
use argon2::PasswordHasher;
use rustix::termios;
use rustix::termios::LocalModes;
use rustix::termios::OptionalActions;
use rustix::termios::Termios;

use crate::cli::CliError;
use crate::cli::input::read_input;
use crate::cli::output::Output;
use crate::model::Secret;
use crate::model::limits;

/// What a check costs with bcrypt: about a quarter of a second.
const BCRYPT_COST: u32 = 12;

/// Reads a password from a terminal or from standard input and prints its hash.
pub(super) fn run(bcrypt: bool, output: &mut Output<'_>) -> Result<(), CliError> {
    let password = read_password(output)?;
    let hash = hash(&password, bcrypt).map_err(CliError::Other)?;
    Ok(output.print(&format!("{hash}\n"))?)
}

/// The hash of a password, argon2id or bcrypt.
pub(super) fn hash(password: &Secret, bcrypt: bool) -> Result<String, String> {
    let text = password.reveal();
    if text.is_empty() {
        return Err("the password must not be empty".to_owned());
    }
    if text.len() > limits::CREDENTIALS_BYTES_MAX {
        let most = limits::CREDENTIALS_BYTES_MAX;
        return Err(format!("the password must not be longer than {most} bytes"));
    }
    if text.chars().any(char::is_control) {
        return Err("the password must not contain control characters".to_owned());
    }
    if bcrypt {
        let hash = bcrypt::non_truncating_hash(text, BCRYPT_COST);
        return hash.map_err(|error| format!("cannot create a bcrypt hash: {error}"));
    }
    let hash = Argon2::default().hash_password(text.as_bytes());
    hash.map(|hash| hash.to_string())
        .map_err(|error| format!("cannot create an argon2id hash: {error}"))
}

/// One line; asked for without echo when there is a terminal.
pub(super) fn read_password(output: &mut Output<'_>) -> Result<Secret, CliError> {
    let stdin = io::stdin();
    if !termios::isatty(&stdin) {
        // One byte more than is allowed, and the line end.
        let most = u64::try_from(limits::CREDENTIALS_BYTES_MAX).unwrap_or(u64::MAX);
        return Ok(line(read_input(most.saturating_add(3))?));
    }
    let silent = EchoOff::new().map_err(io::Error::from)?;
    let first = ask(output, "Password: ")?;
    // What is typed is not shown, so a mistyped password would be found at the first login.
    let again = ask(output, "Repeat the password: ")?;
    drop(silent);
    if first == again {
        Ok(first)
    } else {
        Err(CliError::Other(
            "the passwords differ; nothing was printed".to_owned(),
        ))
    }
}

/// One line of the terminal, which does not echo it.
fn ask(output: &mut Output<'_>, prompt: &str) -> Result<Secret, CliError> {
    output.ask(prompt)?;
    let mut text = String::new();
    io::stdin().lock().read_line(&mut text)?;
    // The line end that the terminal did not echo either.
    output.complain("")?;
    Ok(line(text))
}

fn line(mut text: String) -> Secret {
    let kept = text.trim_end_matches(['\r', '\n']).len();
    text.truncate(kept);
    Secret::new(text)
}

/// The terminal does not echo while this lives.
struct EchoOff(Termios);

impl EchoOff {
    fn new() -> rustix::io::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        termios::tcsetattr(io::stdin(), OptionalActions::Flush, &quiet)?;
        Ok(Self(before))
    }
}

impl Drop for EchoOff {
    fn drop(&mut self) {
        // A terminal that is gone needs no echo.
        termios::tcsetattr(io::stdin(), OptionalActions::Flush, &self.0).unwrap_or_default();
    }
}
