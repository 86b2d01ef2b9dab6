//! The exec channel as it arrives on COM2: frames from the agent in a guest, of which each is a type (u8), a length
//! (u32, little-endian) and that many bytes. It carries a command's output and status apart from every console.

use std::mem;

use anyhow::{Result, bail};

/// The version of the protocol that the agent announces.
const VERSION: u32 = 1;
/// A frame longer than this is not one.
const LONGEST: usize = 1 << 20;
const HEADER: usize = 5;

/// One frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// The agent runs.
    Ready,
    /// Bytes of the command's standard output.
    Output(Vec<u8>),
    /// Bytes of its standard error.
    Error(Vec<u8>),
    /// Its exit status, 128 + number when a signal ended it.
    Status(i32),
}

/// Puts frames together from the pieces that arrive.
#[derive(Default)]
pub struct Frames {
    pending: Vec<u8>,
}

impl Frames {
    /// Takes the next bytes of the channel and gives the frames that are whole now.
    pub fn append(&mut self, bytes: &[u8]) -> Result<Vec<Frame>> {
        self.pending.extend_from_slice(bytes);
        let mut frames = Vec::new();
        let mut rest = mem::take(&mut self.pending);
        while let Some((frame, length)) = first(&rest)? {
            frames.push(frame);
            rest.drain(..length);
        }
        self.pending = rest;
        Ok(frames)
    }
}

fn first(bytes: &[u8]) -> Result<Option<(Frame, usize)>> {
    let Some((&[kind, a, b, c, d], rest)) = bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if kind > 3 || length > LONGEST {
        bail!("the exec channel is out of step: a frame of type {kind} with {length} bytes");
    }
    let Some(payload) = rest.get(..length) else { return Ok(None) };
    let word = || match payload.try_into() {
        Ok(word) => Ok(u32::from_le_bytes(word)),
        Err(_) => bail!("the exec channel is out of step: a frame of type {kind} with {length} bytes"),
    };
    let frame = match kind {
        0 => match word()? {
            VERSION => Frame::Ready,
            other => bail!("the guest's agent speaks version {other} of the exec channel, this program {VERSION}"),
        },
        1 => Frame::Output(payload.to_vec()),
        2 => Frame::Error(payload.to_vec()),
        _ => Frame::Status(word()? as i32),
    };
    Ok(Some((frame, HEADER + length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b"\0\x04\0\0\0\x01\0\0\0\x01\x05\0\0\0hello\x02\0\0\0\0\x03\x04\0\0\0\x8b\0\0\0";

    fn expected() -> Vec<Frame> {
        vec![Frame::Ready, Frame::Output(b"hello".into()), Frame::Error(vec![]), Frame::Status(139)]
    }

    #[test]
    fn frames_arrive_whole_however_they_are_cut() {
        for size in 1..=STREAM.len() {
            let mut frames = Frames::default();
            let parsed: Vec<Frame> =
                STREAM.chunks(size).flat_map(|piece| frames.append(piece).expect("in step")).collect();
            assert_eq!(parsed, expected(), "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for (bytes, message) in [
            (&b"Linux version"[..], "the exec channel is out of step: a frame of type 76 with 2020961897 bytes"),
            (b"\x03\x01\0\0\0\0", "the exec channel is out of step: a frame of type 3 with 1 bytes"),
            (b"\0\x04\0\0\0\x02\0\0\0", "the guest's agent speaks version 2 of the exec channel, this program 1"),
        ] {
            let error = Frames::default().append(bytes).expect_err("is refused");
            assert_eq!(error.to_string(), message);
        }
    }
}
