//! A disk and a network together: Debian's kernel fetches from the host, writes it to its disk, and reads it back.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::thread;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::{Lab, QEMU, Test};
use crate::emulator::qemu::devices::image;
use crate::workspace;

pub const TESTS: &[Test] = &[Test::new("devices::from the host over the network onto the disk", fetch).only(QEMU)];

/// Bytes that are fetched.
const LENGTH: usize = 4 << 20;

fn fetch(lab: &Lab) -> Result<()> {
    let content = content();
    let port = serve(content.clone())?;
    let command = format!(
        "ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 && wget -q -O - http://10.0.2.2:{port}/ > /dev/vda \
         && sync && echo 3 > /proc/sys/vm/drop_caches && head -c {LENGTH} /dev/vda | sha256sum"
    );
    let outcome = lab.boot("disk-net").exec(&command).timeout(600).run()?;
    outcome.status(0)?;
    let sum: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(outcome.text()?.starts_with(&sum), outcome.failure("the disk has another content"));
    let disk = workspace::read(&image(&workspace::folder(&format!("run/{}", lab.name))?, "d0"))?;
    ensure!(disk.get(..LENGTH) == Some(&content[..]), outcome.failure("the image has another content"));
    outcome.never_says("does not have")?.never_says("was started again").map(drop)
}

/// Bytes that do not repeat.
fn content() -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..LENGTH).map(|_| next()).collect()
}

/// Answers every request with `content`; the port.
fn serve(content: Vec<u8>) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut request = BufReader::new(&stream).lines();
            while request.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", content.len());
            // A client that goes away fails by itself.
            let _ = (&stream).write_all(head.as_bytes()).and_then(|()| (&stream).write_all(&content));
        }
    });
    Ok(port)
}
