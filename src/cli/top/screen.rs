//! The terminal of `snapgate top`: another screen, no echo, keys without a line end; all as before when it ends.

use std::io;
use std::io::Read;
use std::time::Duration;

use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;
use rustix::termios;
use rustix::termios::LocalModes;
use rustix::termios::OptionalActions;
use rustix::termios::Termios;

use crate::cli::output::Output;

const ENTER: &str = "\u{1b}[?1049h\u{1b}[?25l";
const LEAVE: &str = "\u{1b}[?25h\u{1b}[?1049l";
/// To the upper left corner; each line is cleared behind its end, and everything below the last one.
const HOME: &str = "\u{1b}[H";
const CLEAR_LINE: &str = "\u{1b}[K\r\n";
const CLEAR_REST: &str = "\u{1b}[J";
/// Rows and columns of a terminal that does not say.
const SIZE: (usize, usize) = (24, 80);

/// Whether frames can be drawn and keys read.
pub(super) fn is_terminal() -> bool {
    termios::isatty(io::stdin()) && termios::isatty(io::stdout())
}

/// The terminal while frames are drawn.
pub(super) struct Screen {
    before: Termios,
}

impl Screen {
    /// Takes the terminal.
    pub(super) fn enter(output: &mut Output<'_>) -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut modes = before.clone();
        modes
            .local_modes
            .remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        termios::tcsetattr(io::stdin(), OptionalActions::Flush, &modes)?;
        let screen = Self { before };
        output.print(ENTER)?;
        Ok(screen)
    }

    /// Draws a frame, cut to the size of the terminal.
    pub(super) fn draw(&self, lines: &[String], output: &mut Output<'_>) -> io::Result<()> {
        let size = termios::tcgetwinsize(io::stdout());
        let size = size.map(|size| (usize::from(size.ws_row), usize::from(size.ws_col)));
        let (rows, columns) = size
            .ok()
            .filter(|size| size.0 > 0 && size.1 > 0)
            .unwrap_or(SIZE);
        let mut text = HOME.to_owned();
        // The last row stays free: a line end there would scroll.
        for line in lines.iter().take(rows.saturating_sub(1)) {
            text.extend(line.chars().take(columns));
            text.push_str(CLEAR_LINE);
        }
        text.push_str(CLEAR_REST);
        output.print(&text)
    }

    /// Waits for a key; whether it is one that ends the command (`q`, Ctrl-C, Ctrl-D, or the terminal is gone).
    pub(super) fn wait_for_end(&self, time: Duration) -> io::Result<bool> {
        let stdin = io::stdin();
        let timeout = Timespec::try_from(time).ok();
        let mut polled = [PollFd::new(&stdin, PollFlags::IN)];
        match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(false),
            Ok(_) => {
                let mut key = [0];
                let count = stdin.lock().read(&mut key)?;
                Ok(count == 0 || [b'q', b'Q', 3, 4].contains(&key[0]))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Gives the terminal back.
    pub(super) fn leave(self, output: &mut Output<'_>) -> io::Result<()> {
        output.print(LEAVE)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs no modes.
        termios::tcsetattr(io::stdin(), OptionalActions::Flush, &self.before).unwrap_or_default();
    }
}
