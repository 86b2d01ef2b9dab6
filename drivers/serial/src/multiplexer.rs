//! One terminal for several sources: logs, line by line with the source's name, and virtual machines' consoles.
//!
//! The console in the foreground goes out byte for byte as it comes. Other consoles and logs go out as whole lines
//! between its lines, or, if its line stays unfinished (a prompt), on lines of their own below. Nothing is dropped:
//! bytes leave their source only when they are handed to the UART.

use crate::uart::FIFO;

/// Where bytes come from: a ring, whose owner is not trusted, so it may change between two looks.
pub trait Source {
    /// Copies what is there, at most `buffer`, without taking it; returns how many bytes.
    fn peek(&mut self, buffer: &mut [u8]) -> usize;
    /// Takes `count` bytes that [`Self::peek`] returned.
    fn consume(&mut self, count: usize);
}

/// What a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The root task's log: lines that say themselves who speaks.
    System,
    /// A program's log: lines with its name in front.
    Log,
    /// A virtual machine's console.
    Console,
}

/// A line longer than this is broken.
const LINE_MAX: usize = 256;
/// Bytes of the foreground console without end of line after which other sources get their turn.
const PATIENCE: usize = 1024;

/// A source with what is known of it.
pub struct Input<S> {
    /// Name of the program or virtual machine.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its bytes.
    pub source: S,
}

/// The terminal's state.
pub struct Multiplexer<S> {
    inputs: alloc::vec::Vec<Input<S>>,
    /// Index of the console that goes out raw and gets the keys.
    foreground: Option<usize>,
    /// The source whose line is going out.
    line: Option<usize>,
    /// Bytes of that line gone out.
    line_length: usize,
    /// Whether the terminal's cursor is at the start of a line.
    column_zero: bool,
    /// Foreground bytes since the last end of line.
    unfinished: usize,
    /// Bytes to go out before anything else: line ends, names.
    staged: alloc::collections::VecDeque<u8>,
    /// Where the next search for a whole line begins.
    next: usize,
    /// At the start of a line the foreground goes first: it and all others take turns.
    foreground_first: bool,
}

impl<S: Source> Multiplexer<S> {
    /// A terminal for these sources; the first console is in the foreground.
    pub fn new(inputs: alloc::vec::Vec<Input<S>>) -> Self {
        let foreground = inputs.iter().position(|i| i.kind == Kind::Console);
        Self {
            inputs,
            foreground,
            line: None,
            line_length: 0,
            column_zero: true,
            unfinished: 0,
            staged: alloc::collections::VecDeque::new(),
            next: 0,
            foreground_first: false,
        }
    }

    /// The sources.
    pub fn inputs(&mut self) -> &mut [Input<S>] {
        &mut self.inputs
    }

    /// Name of the console in the foreground.
    pub fn foreground(&self) -> Option<&'static str> {
        self.foreground.map(|index| self.inputs[index].name)
    }

    /// Brings the next console to the foreground and says so, if there is another.
    pub fn switch(&mut self) {
        let Some(current) = self.foreground else { return };
        let count = self.inputs.len();
        let next = (1..count).map(|step| (current + step) % count).find(|&i| self.inputs[i].kind == Kind::Console);
        if let Some(next) = next {
            self.foreground = Some(next);
            self.stage_line_end();
            self.staged.extend(b"[console] ");
            self.staged.extend(self.inputs[next].name.bytes());
            self.staged.extend(b"\r\n");
            self.column_zero = true;
        }
    }

    /// Fills `out` with the next bytes to send; returns how many.
    pub fn fill(&mut self, out: &mut [u8; FIFO]) -> usize {
        let mut count = 0;
        while count < out.len() {
            if let Some(byte) = self.staged.pop_front() {
                out[count] = byte;
                count += 1;
                continue;
            }
            if let Some(index) = self.line {
                match self.line_byte(index) {
                    Some(byte) => {
                        out[count] = byte;
                        count += 1;
                    }
                    // Only a source that takes back what it showed gets here: its line ends as it is.
                    None if self.staged.is_empty() && self.line.is_some() => self.end_line(),
                    None => {}
                }
                continue;
            }
            let unfinished = !self.column_zero && self.unfinished < PATIENCE;
            let raw_first = unfinished || self.column_zero && self.foreground_first;
            if raw_first && self.raw(out, &mut count) {
                continue;
            }
            if self.begin_line() {
                continue;
            }
            if !self.raw(out, &mut count) {
                break;
            }
        }
        count
    }

    /// Moves foreground bytes to `out`; false if there are none.
    fn raw(&mut self, out: &mut [u8; FIFO], count: &mut usize) -> bool {
        let Some(index) = self.foreground else { return false };
        let source = &mut self.inputs[index].source;
        let mut got = source.peek(&mut out[*count..]);
        // Stop behind an end of line, so that other sources' lines fit in.
        if let Some(end) = out[*count..*count + got].iter().position(|&b| b == b'\n') {
            got = end + 1;
        }
        if got == 0 {
            return false;
        }
        source.consume(got);
        *count += got;
        self.column_zero = out[*count - 1] == b'\n';
        self.foreground_first = false;
        self.unfinished = if self.column_zero { 0 } else { self.unfinished + got };
        true
    }

    /// Looks for a source with a whole line, or with so much that it must be broken, and stages its beginning.
    fn begin_line(&mut self) -> bool {
        let mut buffer = [0; LINE_MAX];
        for step in 0..self.inputs.len() {
            let index = (self.next + step) % self.inputs.len();
            if Some(index) == self.foreground {
                continue;
            }
            let input = &mut self.inputs[index];
            let count = input.source.peek(&mut buffer);
            if count == LINE_MAX || buffer[..count].contains(&b'\n') {
                self.next = index + 1;
                self.line = Some(index);
                self.line_length = 0;
                let (kind, name) = (input.kind, input.name);
                self.stage_line_end();
                if kind != Kind::System {
                    self.staged.push_back(b'[');
                    self.staged.extend(name.bytes());
                    self.staged.extend(b"] ");
                }
                return true;
            }
        }
        false
    }

    /// The next byte of the line that is going out.
    fn line_byte(&mut self, index: usize) -> Option<u8> {
        let mut byte = [0];
        loop {
            let source = &mut self.inputs[index].source;
            if source.peek(&mut byte) == 0 {
                return None;
            }
            if self.line_length == LINE_MAX {
                self.end_line();
                return None;
            }
            source.consume(1);
            self.line_length += 1;
            match byte[0] {
                b'\n' => {
                    self.end_line();
                    return None;
                }
                b'\r' => {}
                byte => return Some(byte),
            }
        }
    }

    fn end_line(&mut self) {
        self.staged.extend(b"\r\n");
        self.line = None;
        self.column_zero = true;
        self.unfinished = 0;
        self.foreground_first = true;
    }

    fn stage_line_end(&mut self) {
        if !self.column_zero {
            self.staged.extend(b"\r\n");
        }
        self.unfinished = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::string::String;
    use std::vec::Vec;

    struct Queue(VecDeque<u8>);

    impl Source for Queue {
        fn peek(&mut self, buffer: &mut [u8]) -> usize {
            let count = buffer.len().min(self.0.len());
            for (to, from) in buffer.iter_mut().zip(&self.0) {
                *to = *from;
            }
            count
        }
        fn consume(&mut self, count: usize) {
            self.0.drain(..count);
        }
    }

    fn input(name: &'static str, kind: Kind, text: &str) -> Input<Queue> {
        Input { name, kind, source: Queue(text.bytes().collect()) }
    }

    fn output(terminal: &mut Multiplexer<Queue>) -> String {
        let mut bytes = Vec::new();
        let mut out = [0; FIFO];
        loop {
            match terminal.fill(&mut out) {
                0 => return String::from_utf8(bytes).unwrap(),
                count => bytes.extend(&out[..count]),
            }
        }
    }

    #[test]
    fn logs_get_names_and_the_foreground_stays_raw() {
        let mut terminal = Multiplexer::new(std::vec![
            input("root", Kind::System, "root: started\n"),
            input("linux", Kind::Log, "vmm: ready\nhalf a li"),
            input("linux", Kind::Console, "\x1b[0mBooting\r\n/ # "),
            input("other", Kind::Console, "Hello\r\npart"),
        ]);
        assert_eq!(
            output(&mut terminal),
            "root: started\r\n\x1b[0mBooting\r\n[linux] vmm: ready\r\n/ # \r\n[other] Hello\r\n"
        );
        terminal.inputs()[1].source.0.extend(b"ne\n");
        terminal.inputs()[2].source.0.extend(b"ls\r\n");
        assert_eq!(output(&mut terminal), "ls\r\n[linux] half a line\r\n");
        terminal.inputs()[2].source.0.extend(b"/ # ");
        assert_eq!(output(&mut terminal), "/ # ");
        terminal.inputs()[0].source.0.extend(b"root: end\n");
        assert_eq!(output(&mut terminal), "\r\nroot: end\r\n");
        terminal.switch();
        assert_eq!((terminal.foreground(), output(&mut terminal).as_str()), (Some("other"), "[console] other\r\npart"));
    }

    #[test]
    fn a_console_without_line_ends_does_not_silence_the_log() {
        let endless: String = core::iter::repeat_n('.', 5000).collect();
        let mut terminal =
            Multiplexer::new(
                std::vec![input("a", Kind::Console, &endless), input("root", Kind::System, "one\ntwo\n"),],
            );
        // The log arrives while the console's line is unfinished.
        terminal.column_zero = false;
        let text = output(&mut terminal);
        assert!(text.find("\r\none\r\n").unwrap() < 1200);
        assert_eq!(text.matches('.').count(), 5000);
    }

    #[test]
    fn a_flood_of_other_lines_does_not_silence_the_foreground() {
        let flood: String = core::iter::repeat_n("x\n", 100).collect();
        let mut terminal =
            Multiplexer::new(std::vec![input("b", Kind::Log, &flood), input("a", Kind::Console, "1\n2\n3\n")]);
        assert!(output(&mut terminal).starts_with("[b] x\r\n1\n[b] x\r\n2\n[b] x\r\n3\n[b] x"));
    }

    #[test]
    fn long_lines_are_broken() {
        let long: String = core::iter::repeat_n('x', 600).collect();
        let mut terminal = Multiplexer::new(std::vec![input("a", Kind::Log, &(long + "\n"))]);
        let text = output(&mut terminal);
        assert_eq!((text.matches('x').count(), text.lines().count()), (600, 3));
    }

    proptest! {
        #[test]
        fn nothing_is_lost(
            texts in prop::collection::vec("[a-z\n]{0,400}", 4),
            chunk in 1usize..200,
        ) {
            let kinds = [Kind::System, Kind::Log, Kind::Console, Kind::Console];
            let inputs = kinds.iter().map(|&kind| input("n", kind, "")).collect();
            let mut terminal = Multiplexer::new(inputs);
            let mut sent = String::new();
            let mut at = 0;
            while at < 400 {
                for (input, text) in terminal.inputs().iter_mut().zip(&texts) {
                    let end = text.len().min(at + chunk);
                    input.source.0.extend(text.as_bytes()[at.min(end)..end].iter());
                }
                at += chunk;
                sent += &output(&mut terminal);
            }
            for input in terminal.inputs() {
                input.source.0.extend(b"\n");
            }
            sent += &output(&mut terminal);
            for letter in 'a'..='z' {
                let expected: usize = texts.iter().map(|t| t.matches(letter).count()).sum();
                let names = if letter == 'n' { sent.matches("[n] ").count() } else { 0 };
                prop_assert_eq!(sent.matches(letter).count() - names, expected, "letter {}", letter);
            }
        }
    }
}
