//! `top`: what the daemon is doing, again and again, until it is stopped.
//!
//! Keeps: on a terminal the screen that was there comes back however this ends; elsewhere there are no escape codes. It
//! asks `admin.status` and `admin.metrics` and nothing that works the daemon, such as `admin.health`.

mod numbers;
mod screen;

use std::io::{self, IsTerminal, Write};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use crossterm::cursor::{Hide, MoveTo, Show};
use crossterm::terminal::{Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen};
use crossterm::{execute, queue};
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::args;
use super::exit::{CliError, Exit};
use super::output::STRONG;
use super::{CALL_TIMEOUT, Context};
use crate::client::{Client, ClientError};
use numbers::{Sample, View};
use screen::Line;

/// `flashbulb top`
pub fn top(context: &Context, args: &args::Top) -> Result<Exit, CliError> {
    let mut client = context.running()?;
    let interval = Duration::from_secs_f64(args.interval);
    let live = !args.once && !context.out.json && io::stdout().is_terminal();
    let mut before = sample(&mut client)?;
    // Before the screen is changed: a signal in between must find somebody who changes it back.
    let stop = live.then(stop_signals).transpose()?;
    let terminal = live.then(Terminal::enter).transpose()?;
    if let Some(terminal) = &terminal {
        terminal.draw(&screen::lines(&View::between(None, &before)))?;
    }
    loop {
        match &stop {
            Some(stop) => match stop.recv_timeout(interval) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(Exit::Ok),
            },
            None => std::thread::sleep(interval),
        }
        let now = sample(&mut client)?;
        let view = View::between(Some(&before), &now);
        match &terminal {
            Some(terminal) => terminal.draw(&screen::lines(&view))?,
            None => context.out.print(&view, |out| plain(out, &screen::lines(&view)))?,
        }
        if args.once {
            return Ok(Exit::Ok);
        }
        before = now;
    }
}

fn sample(client: &mut Client) -> Result<Sample, ClientError> {
    Ok(Sample {
        status: client.call("admin.status", json!({}), CALL_TIMEOUT)?,
        metrics: client.call("admin.metrics", json!({ "format": "json" }), CALL_TIMEOUT)?,
    })
}

/// One message for each signal that ends the program.
fn stop_signals() -> io::Result<Receiver<()>> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let (told, stop) = mpsc::channel();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for _ in &mut signals {
            // Nobody is left to be told where the program is ending already.
            let _ = told.send(());
        }
    })?;
    Ok(stop)
}

/// One screen, and an empty line before the next.
fn plain(out: &mut dyn Write, lines: &[Line]) -> io::Result<()> {
    for line in lines {
        match line.heading {
            true => writeln!(out, "{STRONG}{}{STRONG:#}", line.text)?,
            false => writeln!(out, "{}", line.text)?,
        }
    }
    writeln!(out)
}

/// The terminal's other screen; dropping it brings the first one back.
struct Terminal;

impl Terminal {
    fn enter() -> io::Result<Self> {
        let terminal = Terminal;
        execute!(io::stdout(), EnterAlternateScreen, Hide)?;
        Ok(terminal)
    }

    /// Draws over what is there, as much as fits.
    fn draw(&self, lines: &[Line]) -> io::Result<()> {
        let (columns, rows) = match crossterm::terminal::size()? {
            // A terminal that does not know its size, such as a serial line.
            (0, _) | (_, 0) => (80, 24),
            size => size,
        };
        let mut stdout = io::stdout();
        let styled = anstream::AutoStream::choice(&stdout) != anstream::ColorChoice::Never;
        let mut frame = Vec::new();
        queue!(frame, MoveTo(0, 0))?;
        for (row, line) in fitting(lines, columns.into(), rows.into()).iter().enumerate() {
            if row > 0 {
                frame.write_all(b"\r\n")?;
            }
            match line.heading && styled {
                true => write!(frame, "{STRONG}{}{STRONG:#}", line.text)?,
                false => write!(frame, "{}", line.text)?,
            }
            queue!(frame, Clear(ClearType::UntilNewLine))?;
        }
        queue!(frame, Clear(ClearType::FromCursorDown))?;
        stdout.write_all(&frame)?;
        stdout.flush()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Nothing is left to do where the terminal has gone.
        let _ = execute!(io::stdout(), Show, LeaveAlternateScreen);
    }
}

/// The lines that a terminal of this size shows; where some are left out, the last one says so.
fn fitting(lines: &[Line], columns: usize, rows: usize) -> Vec<Line> {
    let cut = |line: &Line| Line {
        text: line.text.chars().take(columns).collect(),
        heading: line.heading,
    };
    if lines.len() <= rows {
        return lines.iter().map(cut).collect();
    }
    let kept = rows.saturating_sub(1);
    let more = format!("… {} more lines in a higher terminal", lines.len() - kept);
    let mut shown: Vec<Line> = lines.iter().take(kept).map(cut).collect();
    shown.push(cut(&Line { text: more, heading: false }));
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_terminal_shows_what_fits_and_says_what_does_not() {
        let lines: Vec<Line> =
            (0..5).map(|n| Line { text: format!("line {n} ü"), heading: n == 0 }).collect();
        let shown = |columns, rows| {
            let lines = fitting(&lines, columns, rows);
            lines.into_iter().map(|line| line.text).collect::<Vec<_>>()
        };
        assert_eq!(shown(80, 5).len(), 5);
        assert_eq!(shown(8, 5)[4], "line 4 ü");
        assert_eq!(shown(5, 2), ["line ", "… 4 m"]);
        assert_eq!(shown(80, 3)[2], "… 3 more lines in a higher terminal");
    }
}
